"""Checkpoints: complete or absent, safe to load, and compatible with the original system's files."""

import os
import pickle

import numpy as np
import pytest
import torch

from forecast import Predictor, load_checkpoint, predict_next_from_values, save_checkpoint
from forecast.atomic import write_atomically
from forecast.errors import CheckpointError, WindowError
from forecast.model.checkpoint import SCHEMA_VERSION


def test_a_checkpoint_reads_back_as_it_was_written(tiny_result, tiny_checkpoint):
    read = load_checkpoint(tiny_checkpoint)
    written = tiny_result.checkpoint
    for name in ("config", "normalization", "metrics_test", "metrics_validation", "persistence", "split"):
        assert getattr(read, name) == getattr(written, name)
    assert read.provenance["sha256"] == written.provenance["sha256"]
    assert all(torch.equal(read.model_state[name], written.model_state[name]) for name in written.model_state)


def test_a_checkpoint_is_plain_data_with_the_original_eight_keys(tiny_checkpoint):
    content = torch.load(tiny_checkpoint, weights_only=True)
    assert {
        "model_state",
        "config",
        "feature_mean",
        "feature_std",
        "val_loss_best",
        "metrics_test",
        "trial_number",
        "trial_params",
    } <= set(content)


def test_a_checkpoint_predicts_what_the_model_that_made_it_predicted(snapshot, tiny_result, tiny_checkpoint):
    predictor = Predictor(tiny_checkpoint)
    start = tiny_result.checkpoint.split["validation_end"]
    rows = np.arange(start, len(snapshot))
    windows = np.stack([snapshot.values[row - predictor.rows_used : row] for row in rows])
    predicted = predictor.predict(windows)
    assert np.mean(np.abs(predicted - snapshot.values[rows])) == pytest.approx(tiny_result.test.model["MAE"])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused_in_one_line(tiny_checkpoint, tmp_path, share):
    content = tiny_checkpoint.read_bytes()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"^[^\n]*cut\.pt is damaged[^\n]*$"):
        load_checkpoint(cut)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "evil.pt"
    torch.save({"model_state": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"is refused: .* could run code"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "newer than"),
        ({"normalization": None}, "not a usable checkpoint"),
        ({"config": {"hidden_size": -1}}, "config hidden_size"),
        ({"model_state": {}}, "not a usable checkpoint"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_reason(
    tiny_checkpoint, tmp_path, change, message
):
    content = torch.load(tiny_checkpoint, weights_only=True) | change
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize(
    "name", ["metrics_test", "calibration_scores", "split", "trial_params", "val_loss_best"]
)
def test_a_checkpoint_that_lacks_a_field_is_refused_by_name(tiny_checkpoint, tmp_path, name):
    content = torch.load(tiny_checkpoint, weights_only=True)
    del content[name]
    torch.save(content, tmp_path / "short.pt")
    with pytest.raises(CheckpointError, match=f"not a usable checkpoint .no {name}"):
        load_checkpoint(tmp_path / "short.pt")


def test_weights_that_are_not_finite_are_refused(tiny_checkpoint, tmp_path):
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["model_state"]["regressor.bias"].fill_(float("nan"))
    torch.save(content, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match="not finite"):
        load_checkpoint(tmp_path / "nan.pt")


def test_a_file_that_is_no_checkpoint_at_all_is_called_damaged_and_not_dangerous(tmp_path):
    for content in (b"# A readme\n" * 50, b"", b"PK\x03\x04 not a zip", bytes(range(256))):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged or not a checkpoint"):
            load_checkpoint(tmp_path / "file")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, torch.zeros(3)])
def test_a_foreign_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="is not a forecaster checkpoint"):
        load_checkpoint(tmp_path / "foreign.pt")


def test_a_missing_checkpoint_says_how_to_make_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*python -m tune_jobs\.pareto"):
        load_checkpoint(tmp_path / "none.pt")


def test_a_directory_is_not_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is not a file"):
        load_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_old_checkpoint_and_no_litter(tiny_checkpoint, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(tiny_checkpoint.read_bytes())

    def run_out_of_space(stream):
        stream.write(b"half a file")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, run_out_of_space)
    assert path.read_bytes() == tiny_checkpoint.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@pytest.fixture
def original_checkpoint(tmp_path):
    """Write a file as the original system did, and return the number that its code would predict."""
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(1, 16, 2, batch_first=True, dropout=0.2).eval()
    regressor = torch.nn.Linear(16, 1)
    mean, std = 5000.0, 2500.0
    state = {f"lstm.{k}": v for k, v in lstm.state_dict().items()}
    state |= {f"regressor.{k}": v for k, v in regressor.state_dict().items()}
    path = tmp_path / "original.pt"
    torch.save(
        {
            "model_state": state,
            "config": {
                "symbol": "BTC-USD",
                "feature": "Close",
                "sequence_length": 30,
                "hidden_size": 64,
                "num_layers": 3,
                "storage_path": "sqlite:///optuna_study.db",
            },
            "feature_mean": mean,
            "feature_std": std,
            "val_loss_best": 0.01,
            "metrics_test": {"MAE": 1.0, "RMSE": 2.0, "MAPE": 3.0},
            "trial_number": 4,
            "trial_params": {"hidden_size": 16, "num_layers": 2, "dropout": 0.2},
        },
        path,
    )
    values = np.linspace(4000, 7000, 30)
    with torch.no_grad():
        inputs = torch.tensor((values - mean) / std, dtype=torch.float32).view(1, -1, 1)
        expected = regressor(lstm(inputs)[0][:, -1]).item() * std + mean
    return path, values, expected


def test_an_original_checkpoint_predicts_the_same_number(original_checkpoint):
    path, values, expected = original_checkpoint
    assert predict_next_from_values(values, path) == pytest.approx(expected, rel=1e-6)


def test_an_original_checkpoint_keeps_its_facts(original_checkpoint):
    checkpoint = load_checkpoint(original_checkpoint[0])
    assert checkpoint.schema_version == 0
    assert checkpoint.trial_number == 4
    assert checkpoint.metrics_test == {"MAE": 1.0, "RMSE": 2.0, "MAPE": 3.0}
    assert (
        checkpoint.config.sequence_length,
        checkpoint.config.hidden_size,
        checkpoint.config.num_layers,
    ) == (30, 16, 2)


def test_an_original_checkpoint_loads_whatever_it_says_of_its_search(original_checkpoint):
    path = original_checkpoint[0]
    content = torch.load(path, weights_only=True)
    content |= {"metrics_test": {"MAE": 1.0, "note": None}, "trial_number": "seven"}
    torch.save(content, path)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.metrics_test, checkpoint.trial_number) == ({"MAE": 1.0}, None)


def test_an_original_checkpoint_that_does_not_say_its_window_is_refused(original_checkpoint):
    path = original_checkpoint[0]
    content = torch.load(path, weights_only=True)
    del content["config"]["sequence_length"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="no sequence_length in its config"):
        load_checkpoint(path)


def test_many_windows_at_once_give_what_each_gives_alone(snapshot, tiny_checkpoint):
    predictor = Predictor(tiny_checkpoint)
    windows = np.stack([snapshot.values[start : start + 25] for start in range(50)])
    together = predictor.predict(windows)
    alone = [predictor.predict_next(list(window)) for window in windows]
    assert together == pytest.approx(alone, rel=1e-7)


def test_only_the_last_values_of_a_long_window_count(snapshot, tiny_checkpoint):
    predictor = Predictor(tiny_checkpoint)
    values = snapshot.values[:400].tolist()
    assert predictor.predict_next(values) == predictor.predict_next([1.0, *values[-predictor.rows_used :]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([100.0] * 19, "19 values are too few: this model needs at least 20"),
        ([100.0] * 10 + [float("nan")] + [100.0] * 9, r"nan \(number 10 from the end\).*finite"),
        ([float("inf")] * 20, "must be a finite number"),
        ([100.0] * 19 + [0.0], "needs positive prices"),
        (["a"] * 20, "numbers"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(tiny_checkpoint, values, message):
    with pytest.raises(WindowError, match=message):
        Predictor(tiny_checkpoint).predict_next(values)


def test_predict_next_from_values_sees_a_replaced_checkpoint(snapshot, tiny_result, tmp_path):
    path = tmp_path / "model.pt"
    values = snapshot.values[-20:].tolist()
    save_checkpoint(tiny_result.checkpoint, path)
    before = predict_next_from_values(values, path)
    state = {name: value + 0.1 for name, value in tiny_result.checkpoint.model_state.items()}
    save_checkpoint(tiny_result.checkpoint.model_copy(update={"model_state": state}), path)
    assert predict_next_from_values(values, path) != before


def test_a_model_of_schema_4_which_knew_no_panels_loads(tiny_checkpoint, tmp_path):
    content = torch.load(tiny_checkpoint, weights_only=True)
    known = {name: value for name, value in content.items() if name not in ("symbols", "left_out")}
    torch.save({**known, "schema_version": 4}, tmp_path / "earlier.pt")
    assert load_checkpoint(tmp_path / "earlier.pt").symbols == {}
