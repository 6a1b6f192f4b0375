"""Exported models: one ONNX file gives the numbers of its checkpoint, and runs without torch."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_here import serving
from untrained import BARS, bars, chosen, config_of, panel_of, untrained

from forecast import Predictor, load_checkpoint, save_checkpoint
from forecast.__main__ import main
from forecast.cli.command import run
from forecast.errors import CheckpointError, UsageError, WindowError
from forecast.inference.agreement import differences
from forecast.inference.engines import random_inputs
from forecast.model.card import ModelCard
from forecast.model.export import describe, exported_model
from forecast.model.exported import CHECKSUM, KIND, _text, load_exported
from forecast.model.header import read_header
from forecast.model.loading import load_card
from forecast.model.tracing import Recorder

ROOT = Path(__file__).parents[1]
LARGEST = 1e-6
"""Largest difference from the checkpoint in torch, relative to the price."""


@st.composite
def models(draw):
    """Options of a model of one symbol, and those of its further members."""
    likelihood = draw(st.sampled_from(["student_t", "mse"]))
    columns = draw(st.sampled_from([(), BARS, ("High", "Low", "Volume"), ("Volume",)]))
    volatilities = ["ewma", "gjr", "window"] + ["range"] * ("High" in columns)
    options = {
        "likelihood": likelihood,
        "target": draw(st.sampled_from(["residual", "level"])),
        "log_prices": draw(st.booleans()),
        "volatility": draw(st.sampled_from(volatilities)),
        "input_columns": columns,
    }
    shapes = st.fixed_dictionaries(
        {
            "sequence_length": st.integers(2, 30),
            "num_layers": st.integers(1, 2),
            "volatility": st.sampled_from(volatilities),
        }
    )
    return options, draw(st.lists(shapes, max_size=2))


@settings(max_examples=20, deadline=None)
@given(models(), st.integers(0, 2**31))
def test_the_graph_gives_the_distribution_of_the_checkpoint_in_torch(snapshot, model, seed):
    options, further = model
    series = chosen(bars(snapshot), ("Close", *options["input_columns"]))
    checkpoint = untrained(series, config_of(**options), seed, further)
    found = differences(checkpoint, exported_model(checkpoint).SerializeToString(), 16, seed)
    assert found.max() <= LARGEST


@settings(max_examples=8, deadline=None)
@given(
    likelihood=st.sampled_from(["student_t", "mse"]),
    columns=st.sampled_from([(), BARS]),
    market=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_graph_of_many_symbols_gives_that_of_each_of_new_ones_and_of_the_market(
    snapshot, likelihood, columns, market, seed
):
    panel = panel_of(snapshot, 6, ("Close", *columns))
    config = config_of(likelihood=likelihood, input_columns=columns, market=market)
    checkpoint = untrained(panel, config, seed, [{"sequence_length": 7}])
    found = differences(checkpoint, exported_model(checkpoint).SerializeToString(), 24, seed)
    assert found.max() <= LARGEST


@pytest.fixture(scope="module")
def pair(snapshot, tmp_path_factory):
    """A checkpoint of learned intervals, and the file that the command makes of it."""
    place = tmp_path_factory.mktemp("exported")
    config = config_of(source="snapshot", likelihood="student_t", members=2, target="residual")
    checkpoint, exported = place / "model.pt", place / "model.onnx"
    model = untrained(snapshot, config, 0, [{"sequence_length": 20}])
    window = snapshot.values[-model.rows_used :].tolist()
    save_checkpoint(model.model_copy(update={"latest_window": window}), checkpoint)
    assert run(main, ["export", str(checkpoint), str(exported), "--check-windows", "20"]) == 0
    return checkpoint, exported


@pytest.mark.parametrize("log_prices", [True, False])
@pytest.mark.parametrize("columns", [(), BARS])
def test_the_graph_gives_no_number_for_a_window_that_a_predictor_refuses(snapshot, log_prices, columns):
    series = chosen(bars(snapshot), ("Close", *columns))
    checkpoint = untrained(series, config_of(log_prices=log_prices, input_columns=columns, volatility="gjr"))
    session = onnxruntime.InferenceSession(exported_model(checkpoint).SerializeToString())
    predictor, least = Predictor.of(checkpoint), checkpoint.sequence_length
    whole = series.matrix[-checkpoint.rows_used :].copy()

    def answers(window):
        return [session.run([name], {"prices": window[np.newaxis]})[0] for name in ("price", "quantiles")]

    def changed(row, value):
        window = whole.copy()
        window[row, -1] = value
        return window

    shorter = whole.copy()
    shorter[:-least] = np.nan
    for window in (whole, whole[-least:], shorter):
        assert all(np.isfinite(answer).all() for answer in answers(window))
    impossible = [np.nan, np.inf, *([0.0, -5.0] if log_prices else [])]
    places = [-1, -3, -least] + ([-least - 5] if len(whole) > least + 5 else [])
    refused = [changed(row, value) for row in places for value in impossible]
    for window in [*refused, whole[-least + 1 :], whole[:0]]:
        with pytest.raises(WindowError):
            predictor.predict([window if columns else window[:, 0]])
        assert all(np.isnan(answer).all() for answer in answers(window))


def test_the_graph_gives_no_number_for_a_new_symbol_whose_prices_do_not_vary(pooled_pair):
    session = onnxruntime.InferenceSession(pooled_pair[1].read_bytes())
    prices = np.full((2, 60, 1), 0.1)
    (found,) = session.run(["price"], {"prices": prices, "symbol": np.array([-1, 0])})
    assert np.isnan(found).tolist() == [True, False]


def test_a_graph_that_gives_no_number_does_not_agree(pair):
    import onnx

    model = onnx.load(pair[1])
    tensor = next(each for each in model.graph.initializer if each.name.endswith("regressor_bias"))
    tensor.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32("nan"), tensor.name)
    )
    assert np.isnan(differences(load_checkpoint(pair[0]), model.SerializeToString(), 32)).all()


def test_both_engines_refuse_inputs_that_overflow(pair):
    for path in pair:
        predictor = Predictor(path, "cpu")
        inputs = [
            np.zeros((2, *each.shape[1:]), np.float32) for each in random_inputs(predictor.checkpoint, 2)
        ]
        inputs[0][1, -1, 0] = np.nan
        assert np.isnan(predictor.engine(inputs)).reshape(2, -1).any(axis=1).tolist() == [False, True]


@pytest.mark.parametrize("count", [60, 150])
def test_a_model_that_sees_the_market_is_checked_with_it_and_without_it(snapshot, count):
    checkpoint = untrained(panel_of(snapshot, count), config_of(likelihood="student_t", market=True))
    found = differences(checkpoint, exported_model(checkpoint).SerializeToString(), 16)
    assert found.max() <= LARGEST
    other = replace(checkpoint.market, change_std=2 * checkpoint.market.change_std)
    wrong = exported_model(checkpoint.model_copy(update={"market": other})).SerializeToString()
    found = differences(checkpoint, wrong, 16)
    shown, hidden = np.split(found, 2)
    assert shown.max() > LARGEST
    assert hidden.max() <= LARGEST


@pytest.fixture(scope="module")
def pooled_pair(snapshot, tmp_path_factory):
    place = tmp_path_factory.mktemp("pooled")
    panel = panel_of(snapshot, 6)
    checkpoint = untrained(panel, config_of(likelihood="student_t", market=True))
    save_checkpoint(checkpoint, place / "model.pt")
    (place / "model.onnx").write_bytes(exported_model(checkpoint).SerializeToString())
    return place / "model.pt", place / "model.onnx"


def test_a_predictor_gives_the_numbers_of_the_checkpoint_at_every_horizon(pair):
    ours, theirs = (Predictor(path, "cpu") for path in pair)
    window = theirs.typical_window()
    window[-40:] = [price * (1 + 0.01 * (row % 7 - 3)) for row, price in enumerate(window[-40:])]
    assert theirs.engine.name == "onnx"
    assert theirs.predict_steps([window], 5) == pytest.approx(ours.predict_steps([window], 5), rel=LARGEST)
    bounds = [each.predict_intervals([window], [0.5, 0.99], 5) for each in (ours, theirs)]
    assert bounds[1] == pytest.approx(bounds[0], rel=LARGEST)
    assert theirs.multiply_adds == ours.multiply_adds
    assert theirs.whole.sha256 == hashlib.sha256(pair[1].read_bytes()).hexdigest()


def test_the_card_is_the_checkpoint_without_its_weights(pair, pooled_pair):
    for checkpoint, exported in (pair, pooled_pair):
        whole, card = load_checkpoint(checkpoint), load_card(exported)
        for name in ModelCard.model_fields.keys() - {"sha256", "calibration_scores", "further_members"}:
            assert getattr(card, name) == getattr(whole, name), name
        assert card.calibration_scores.tolist() == whole.calibration_scores.tolist()
        assert [each.config for each in card.members] == [each.config for each in whole.members]
        assert card.encodings == whole.encodings
        assert read_header(exported) == read_header(checkpoint)


def test_a_server_of_exported_models_answers_as_one_of_checkpoints(pair, pooled_pair, tmp_path):
    answers = []
    for kind in (0, 1):
        place = tmp_path / str(kind)
        place.mkdir()
        # One of each kind in the second directory: they may be mixed.
        for name, path in (("one", pair[kind]), ("many", pooled_pair[1])):
            shutil.copy(path, place / f"{name}{path.suffix}")
        with serving(place) as client:
            window = client.get("/model", params={"symbol": "BTC-USD"}).json()
            values = Predictor(pair[0], "cpu").typical_window()
            bodies = [
                {"symbol": "BTC-USD", "values": values, "levels": [0.9]},
                {"symbol": "BTC-USD", "values": values, "horizon": 3, "levels": [0.9]},
                {"symbol": "S3", "values": [5.0 + row % 3 for row in range(300)], "levels": [0.5]},
            ]
            found = [client.post("/predict", json=body).json() for body in bodies]
            series = [
                {"symbol": f"S{n}", "values": [5.0 + (row * n) % 5 for row in range(300)]} for n in range(6)
            ]
            found.append(client.post("/predict/batch", json={"series": series}).json())
            assert (window["engine"], window["device"]) == ("onnx", "cpu")
            assert window["sha256"] == hashlib.sha256(pair[kind].read_bytes()).hexdigest()
        answers.append([{**answer, "checkpoint_path": None} for answer in found])
    assert answers[0] == answers[1]


def test_an_exported_model_is_refused_where_it_cannot_run(pair, capsys):
    _, exported = pair
    for options, reason in (
        ({"engine": "torch"}, "in ONNX Runtime alone"),
        ({"device": "cuda"}, "runs on a CPU"),
    ):
        with pytest.raises(UsageError, match=reason):
            Predictor(exported, **options)
    assert run(main, ["export", str(exported), str(exported)]) == 1
    assert run(main, ["export", str(pair[0]), str(exported.with_suffix(".pb"))]) == 2
    assert run(main, ["train", "--start-from", str(exported), "--source", "snapshot"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("give the checkpoint (.pt) that it was made from" in line for line in lines)
    assert len([line for line in lines if line.startswith("error: ")]) == 3


def damaged(data, place):
    changed = bytearray(data)
    changed[place] ^= 0xFF
    return bytes(changed)


def test_a_damaged_foreign_or_newer_file_is_refused_in_one_line(pair, tmp_path):
    import onnx

    checkpoint, exported = pair
    data = exported.read_bytes()
    bare = onnx.load_from_string(data)
    del bare.metadata_props[:]

    def remade(weight=0.0, **changes):
        """The file with another card or weight, and the checksum of that."""
        model = onnx.load_from_string(data)
        tensor = next(each for each in model.graph.initializer if each.name.endswith("regressor_bias"))
        if weight is None:
            tensor.external_data.add(key="location", value="/etc/hostname")
            tensor.data_location = onnx.TensorProto.EXTERNAL
        else:
            values = onnx.numpy_helper.to_array(tensor) + np.float32(weight)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        metadata = {each.key: each.value for each in model.metadata_props if each.key != CHECKSUM}
        metadata["card"] = json.dumps({**json.loads(metadata["card"]), **changes})
        describe(model, metadata)
        return model.SerializeToString()

    contents = {
        "an empty file": b"",
        "half of it": data[: len(data) // 2],
        "a checkpoint": checkpoint.read_bytes(),
        "text": b"prices\n1\n2\n" * 40,
        "another model": bare.SerializeToString(),
        "a bit of a weight": damaged(data, data.index(b"networks/0/weight_ih") - 40),
        "a newer card": remade(schema_version=99),
        "an impossible normalization": remade(normalization={"scalings": []}),
        "no configuration": remade(config=None),
        "members without networks": remade(further_members=[]),
        "a weight that is not finite": remade(weight=np.nan),
        "a weight in another file": remade(weight=None),
    }
    assert load_card(exported).sha256
    for name, content in contents.items():
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as refused:
            Predictor(path)
        assert "\n" not in str(refused.value), name
        assert str(path) in str(refused.value), name
    with pytest.raises(CheckpointError, match="no exported model at"):
        Predictor(tmp_path / "missing.onnx")


def test_a_field_that_is_there_twice_is_refused_for_readers_take_either():
    node = b"\x22\x04Relu"
    assert _text(memoryview(node), KIND) == "Relu"
    with pytest.raises(ValueError, match="is there twice"):
        _text(memoryview(node + b"\x22\x06Expand"), KIND)


def test_a_slice_with_a_step_is_not_exported():
    traced = Recorder().input("prices", np.zeros((2, 6)))
    for step in (2, -1):
        with pytest.raises(TypeError, match="a slice with a step"):
            traced[:, ::step]


def test_the_card_is_json_also_of_a_file_that_does_not_know_its_loss(pair, tmp_path):
    import onnx

    checkpoint = load_checkpoint(pair[0]).model_copy(update={"val_loss_best": float("nan")})
    (tmp_path / "model.onnx").write_bytes(exported_model(checkpoint).SerializeToString())
    metadata = {each.key: each.value for each in onnx.load(tmp_path / "model.onnx").metadata_props}
    json.loads(metadata["card"], parse_constant=pytest.fail)
    assert np.isnan(load_card(tmp_path / "model.onnx").val_loss_best)


def test_a_place_that_cannot_be_written_is_refused_before_the_export(pair, tmp_path, capsys):
    (tmp_path / "model.onnx").mkdir()
    assert run(main, ["export", str(pair[0]), str(tmp_path / "model.onnx")]) == 2
    assert run(main, ["export", str(pair[0]), str(pair[1] / "model.onnx")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "model.onnx is a directory; give the path of a file" in lines[0]
    assert str(pair[1]) in lines[1]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_file_with_a_changed_byte_is_refused(pair, tmp_path_factory, data):
    content = pair[1].read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.onnx"
    path.write_bytes(bytes(changed))
    if changed == content:
        assert load_exported(path).card.sha256
    else:
        with pytest.raises(CheckpointError):
            load_exported(path)


@pytest.mark.parametrize("operator", ["Loop", "Expand", "foreign.Op"])
def test_a_network_that_could_do_more_than_compute_is_refused(pair, tmp_path, operator):
    import onnx
    from onnx import helper

    model = onnx.load(pair[1])
    domain, _, kind = operator.rpartition(".")
    attributes = {"body": helper.make_graph([], "endless", [], [])} if kind == "Loop" else {}
    node = helper.make_node(kind, ["outputs"], ["more"], domain=domain, name="networks/more", **attributes)
    model.graph.node.append(node)
    describe(model, {each.key: each.value for each in model.metadata_props if each.key != CHECKSUM})
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="is not one of a network"):
        Predictor(path)


def test_neither_the_library_nor_a_server_imports_torch_for_an_exported_model(pair):
    """In a process that has only what the slim image has."""
    left_out = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["serve-slim"]["left-out"]
    missing = [name.replace("[", ".").rstrip("]") for name in left_out]
    code = f"""
        import sys
        sys.modules |= dict.fromkeys({missing!r})
        import forecast
        from forecast import Predictor
        predictor = Predictor({str(pair[1])!r})
        window = predictor.typical_window()
        assert predictor.predict_intervals([window], [0.9], 3).shape == (1, 3, 1, 2)
        import serve_app.deployment, serve_app.foreground
        from serving_here import serving
        with serving({str(pair[1])!r}) as client:
            assert client.post("/predict", json={{"values": window, "horizon": 2, "levels": [0.5]}}).json()["ok"]
            assert [client.get(page).status_code for page in ("/", "/model", "/models", "/docs")] == [200] * 4
        assert serve_app.deployment.cluster_gpus() >= 0
        assert not [name for name, module in sys.modules.items() if name.split(".")[0] == "torch" and module]
        assert not {{"sqlalchemy", "alembic"}} & set(sys.modules)  # which only a ledger needs
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )
    assert done.returncode == 0, done.stderr


def test_the_reader_of_the_documentation_gets_the_same_numbers(pair, tmp_path, capsys):
    """Ten lines of ONNX Runtime and NumPy, run as they stand."""
    page = (ROOT / "docs" / "how-to" / "without-torch.md").read_text()
    (reader,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    shutil.copy(pair[1], tmp_path / "model.onnx")
    with contextlib.chdir(tmp_path):
        exec(reader, found := {})
    ours = Predictor(pair[0], "cpu")
    window = ours.checkpoint.latest_window
    assert found["forecast"]["price"] == pytest.approx(ours.predict([window]), rel=LARGEST)
    quantiles = ours.forecast([window]).quantiles(found["forecast"]["probabilities"])
    assert found["forecast"]["quantiles"] == pytest.approx(quantiles, rel=LARGEST)
    printed = re.findall(r"\d+\.\d+", capsys.readouterr().out.replace("90 %", ""))
    assert [float(number) for number in printed] == pytest.approx(
        [found["forecast"]["price"][0], *ours.predict_intervals([window], [0.9])[0, 0, 0]], rel=1e-6
    )


def test_what_the_slim_image_leaves_out_is_what_the_project_depends_on():
    read = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {re.split("[<>=]", line)[0] for line in read["project"]["dependencies"]}
    assert set(read["tool"]["serve-slim"]["left-out"]) <= names
