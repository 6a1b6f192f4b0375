"""Read the files of version 0.1.0, and reproduce its answers.

Recorded again since then, as defects of 0.1.0: the CRPS, which was 200/199 too large, and the intervals beyond one
step. The parts of the bar that a model sees are another one: such a model is no longer trained to the same weights.

``recorded/`` holds its checkpoints, a job that was killed while a trial ran, and in ``answers.json`` its answers in
Python, over HTTP and on the command line. The last digits of a number depend on the processor: most are compared only
if torch's arithmetic here seems to equal that of the recording, and none beyond the rounding of single precision.
"""

import hashlib
import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from bodies import BAD_BODIES
from pydantic_core import to_jsonable_python
from running_job import study_of
from serving_here import serving

from forecast import Predictor, evaluate, load_checkpoint, load_series, save_checkpoint, train
from forecast.__main__ import main
from forecast.model.checkpoint import SCHEMA_VERSION
from tune_jobs import job as jobs
from tune_jobs.options import TuneOptions
from tune_jobs.space import SPACES, SearchSpace

RECORDED = Path(__file__).with_name("recorded")
ANSWERS = json.loads((RECORDED / "answers.json").read_text())
OURS = ("mse", "student_t", "level", "columns")
EVERY = (*OURS, "original")


def arithmetic():
    """Hash the bits that torch and numpy compute here, without our code."""
    before, generator = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    lstm = torch.nn.LSTM(2, 8, 2, batch_first=True)
    inputs = torch.randn(40, 20, 2)
    optimizer = torch.optim.Adam(lstm.parameters(), fused=True)
    for _ in range(3):
        loss = lstm(inputs)[0][:, -1].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(before)
    torch.random.set_rng_state(generator)
    digest = hashlib.sha256()
    for weights in lstm.parameters():
        digest.update(weights.detach().numpy().tobytes())
    digest.update(np.exp(np.log(np.linspace(1, 1e4, 999))).tobytes())
    return digest.hexdigest()


def numbers_of(value, path=""):
    """Flatten a nested value: each leaf by its path."""
    if isinstance(value, dict):
        return {k: v for key in value for k, v in numbers_of(value[key], f"{path}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in numbers_of(item, f"{path}/{i}").items()}
    return {path: value}


def recorded_part(answer, recorded):
    """The answer without the fields that came later: fields may be added, none removed or renamed."""
    if isinstance(recorded, dict):
        return {key: recorded_part(answer[key], value) for key, value in recorded.items() if key in answer}
    if isinstance(recorded, list) and len(recorded) == len(answer):
        return [recorded_part(*pair) for pair in zip(answer, recorded, strict=True)]
    # A relative source is now kept as it was resolved.
    if isinstance(recorded, str) and answer == str(Path(recorded).absolute()):
        return recorded
    return answer


@pytest.fixture(scope="module")
def same():
    """Assert that a value is the recorded one: to six digits, if this processor computes as the recording one did.

    Processors that agree on the small network of ``arithmetic`` still differ in the last bits of larger ones: by up to
    6e-8 of a weight that was trained here.
    """
    alike = arithmetic() == ANSWERS["arithmetic"]
    tolerance = {"rel": 1e-6, "abs": 1e-7} if alike else {"rel": 1e-3, "abs": 1e-6}

    def assert_same(found, recorded):
        found, recorded = numbers_of(found), numbers_of(recorded)
        assert found.keys() == recorded.keys()
        for path, value in recorded.items():
            expected = pytest.approx(value, **tolerance) if isinstance(value, float) else value
            assert found[path] == expected, path

    return assert_same


@pytest.fixture(autouse=True)
def _in_the_recording(monkeypatch):
    monkeypatch.chdir(RECORDED)


def series_of(name):
    config = load_checkpoint(f"{name}.pt").config
    source = "prices.csv" if name == "columns" else "snapshot"
    return load_series(config.symbol, source=source, input_columns=config.input_columns)


def printed(*arguments):
    with redirect_stdout(io.StringIO()) as output:
        assert main(arguments) == 0
    return output.getvalue()


@pytest.mark.parametrize("name", EVERY)
def test_a_recorded_checkpoint_predicts_the_numbers_it_predicted(same, name):
    answers = ANSWERS[name]
    windows, predictor = answers["windows"], Predictor(f"{name}.pt", "cpu")
    same(predictor.predict(windows).tolist(), answers["predict"])
    if "intervals" in answers:
        same(predictor.predict_intervals(windows, [0.5, 0.9]).tolist(), answers["intervals"])
    if "steps" in answers:
        same(predictor.predict_steps(windows, 3).tolist(), answers["steps"])
        same(
            predictor.predict_intervals(windows[:1], [0.5, 0.9], 3).tolist(),
            answers["step_intervals"],
        )


@pytest.mark.parametrize("name", OURS)
def test_a_recorded_checkpoint_scores_as_it_scored(same, name):
    checkpoint, series = load_checkpoint(f"{name}.pt"), series_of(name)
    for part, recorded in ANSWERS[name]["evaluations"].items():
        same(to_jsonable_python(evaluate(checkpoint, series, part)), recorded)


def without_crps(metrics):
    return {
        key: without_crps(value) if isinstance(value, dict) else value
        for key, value in metrics.items()
        if key != "CRPS"
    }


@pytest.mark.parametrize("name", ["mse", "student_t", "level"])
def test_training_a_recorded_configuration_again_gives_its_weights(same, name):
    checkpoint = load_checkpoint(f"{name}.pt")
    again = train(series_of(name), checkpoint.config).checkpoint
    assert (checkpoint.schema_version, again.schema_version) == (2, SCHEMA_VERSION)
    same(
        {key: value.ravel().tolist() for key, value in again.model_state.items()},
        {key: value.ravel().tolist() for key, value in checkpoint.model_state.items()},
    )
    for field in ("metrics_validation", "metrics_test", "persistence"):
        same(without_crps(getattr(again, field)), without_crps(getattr(checkpoint, field)))
    for field in ("intervals", "latest_window"):
        same(getattr(again, field), getattr(checkpoint, field))


@pytest.mark.parametrize("name", EVERY)
def test_a_recorded_checkpoint_that_is_saved_again_is_the_same_model_in_the_new_format(name, tmp_path):
    before = load_checkpoint(f"{name}.pt")
    save_checkpoint(before, tmp_path / "new.pt")
    after = load_checkpoint(tmp_path / "new.pt")
    assert after.schema_version == SCHEMA_VERSION
    changed = {"model_state", "calibration_scores", "schema_version", "sha256", "val_loss_best"}
    for field in set(type(before).model_fields) - changed:
        assert getattr(after, field) == getattr(before, field), field
    assert all(torch.equal(value, after.model_state[key]) for key, value in before.model_state.items())
    np.testing.assert_equal(after.calibration_scores, before.calibration_scores)
    assert after.val_loss_best == before.val_loss_best


@pytest.mark.parametrize("name", EVERY)
def test_the_server_answers_as_it_answered(same, name):
    with serving(f"{name}.pt", engine="torch") as client:
        for recorded in ANSWERS[name]["http"]:
            response = client.request(recorded["method"], recorded["path"], json=recorded["body"])
            answer = response.json()
            assert response.status_code == recorded["status"]
            same(recorded_part(answer, recorded["answer"]), recorded["answer"])
        for what, status in ANSWERS[name].get("refused", {}).items():
            assert client.post("/predict", content=BAD_BODIES[what]).status_code == status, what


@pytest.mark.parametrize("name", EVERY)
def test_infer_prints_what_it_printed(same, name, tmp_path):
    window = tmp_path / "window.json"
    window.write_text(json.dumps(ANSWERS[name]["windows"][0]))
    command = ("infer", "--checkpoint", f"{name}.pt", "--file", str(window))
    recorded = ANSWERS[name]["infer"]
    same(recorded_part(json.loads(printed(*command, "--json")), recorded), recorded)
    assert printed(*command) == ANSWERS[name]["infer_text"]


FITTED = {"ratio": {"rel": 5e-3}, "statistic": {"rel": 0.1}, "p_value": {"abs": 0.02}}
"""Tolerances for baselines fitted by an optimizer: where it stops depends on the threads and kernels of numpy."""


def test_a_backtest_gives_the_scores_and_tests_it_gave(same, tmp_path):
    recorded = ANSWERS["backtest"]
    summary = json.loads(printed(*recorded["arguments"], "--output-dir", str(tmp_path)))
    found = recorded_part(summary, recorded["summary"])
    comparisons = zip(found.pop("comparisons"), recorded["summary"]["comparisons"], strict=True)
    same(found, {key: value for key, value in recorded["summary"].items() if key != "comparisons"})
    for now, then in comparisons:
        # The last digit of a mean depends on the processor even where all forecasts are the same.
        others = dict.fromkeys(FITTED, {"rel": 1e-6 if arithmetic() == ANSWERS["arithmetic"] else 1e-3})  # noqa: RUF024
        tolerances = FITTED if then["baseline"] in ("EWMA", "GARCH") else others
        assert {**now, **dict.fromkeys(tolerances)} == {**then, **dict.fromkeys(tolerances)}
        for name, tolerance in tolerances.items():
            assert now[name] == pytest.approx(then[name], **tolerance)


@pytest.mark.slow
def test_a_job_that_0_1_0_left_is_finished_and_its_finished_trials_stay_as_they_are(
    same, cluster, tmp_path, monkeypatch
):
    job = tmp_path / "job"
    shutil.copytree("job", job)
    finished = {trial.number: trial for trial in study_of(job).trials if trial.state.is_finished()}
    recorded_space = SearchSpace(
        sequence_length=(20, 40, 10),
        hidden_size=(4, 8),
        num_layers=(1, 2),
        batch_size=(128,),
        max_epochs=(6, 12, 6),
    )
    monkeypatch.setitem(SPACES, "small", recorded_space)
    jobs.run_job(
        TuneOptions(
            source="snapshot",
            likelihood="mse",
            space="small",
            num_samples=6,
            max_concurrent=1,
            quiet=True,
            report=False,
            output_dir=job,
            resume=True,
        )
    )
    trials = study_of(job).trials
    states = [trial.state.name for trial in trials]
    assert states.count("COMPLETE") == 6
    (interrupted,) = (trial for trial in trials if trial.state.name == "FAIL")
    again = next(trial for trial in trials if trial.user_attrs.get("rerun_of") == interrupted.number)
    assert again.params == interrupted.params
    assert [trials[number] for number in finished] == list(finished.values())
