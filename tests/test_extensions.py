"""Another package adds a source, a metric that becomes an objective, and a network, without a change here."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from running_job import study_of
from serving_here import serving

from forecast import Predictor, TrainConfig, load_checkpoint, load_series, save_checkpoint, train
from forecast.__main__ import main
from forecast.cli.command import run
from forecast.errors import CheckpointError, TrainingError, UsageError
from forecast.model import architecture as base
from forecast.model.network import ARCHITECTURES
from forecast.prices.source import SOURCES
from forecast.registry import Registry
from forecast.scores.metrics import Forecasts, Metric, Rows, squared_errors

OUTSIDE = Path(__file__).with_name("outside")


@pytest.fixture(autouse=True)
def _registries_as_they_were(monkeypatch):
    for registry in (SOURCES, ARCHITECTURES):
        monkeypatch.setattr(registry, "_items", dict(registry._items))


@pytest.fixture
def outside(monkeypatch, tmp_path):
    """The package's module, importable here; its entry points are found only in other processes."""
    shutil.copy(OUTSIDE / "outside.py", tmp_path / "outside.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    import outside

    return outside


@pytest.fixture
def gru(outside):
    ARCHITECTURES.add("gru", outside.GRU_NETWORK)
    return "gru"


def run_with_the_package(*arguments, timeout=200):
    """Run a command in a process whose environment has the package installed."""
    environment = {**os.environ, "PYTHONPATH": str(OUTSIDE)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env=environment, timeout=timeout
    )


@pytest.mark.slow
def test_an_installed_package_gives_a_job_its_prices_an_objective_and_the_network_of_its_trials(
    gru, tmp_path
):
    done = run_with_the_package(
        *("tune_jobs.pareto", "--source", "walk", "--symbol", "ACME", "--network", "gru"),
        *("--likelihood", "student_t", "--objectives", "mae,tail", "--strategy", "min_tail"),
        *("--space", "small", "--num-samples", "2", "--address", "local", "--json"),
        *("--output-dir", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["data"]["source"] == "walk"
    study = study_of(tmp_path)
    assert study.metric_names == ["MAE", "TAIL"]
    best = min(study.trials, key=lambda trial: trial.values[1])
    assert summary["pick"]["trial_number"] == best.number
    assert set(summary["pick"]["test"]) == {"MAE", "RMSE", "MAPE", "CRPS", "MASE", "TAIL"}
    assert "TAIL" in (tmp_path / "report.html").read_text()
    checkpoint = load_checkpoint(tmp_path / "best_pareto_lstm.pt")
    assert checkpoint.config.network == "gru"
    assert any(name.startswith("gru.") for name in checkpoint.model_state)


def test_a_network_of_another_package_is_trained_saved_loaded_and_served_by_torch(
    gru, snapshot, tmp_path, caplog
):
    config = TrainConfig(
        source="snapshot", network=gru, sequence_length=20, hidden_size=4, num_layers=1, max_epochs=2
    )
    result = train(snapshot, config)
    path = tmp_path / "gru.pt"
    save_checkpoint(result.checkpoint, path)
    window = snapshot.values[-20:].tolist()
    expected = Predictor(path).predict_next(window)
    with caplog.at_level(logging.WARNING), serving(path) as client:
        answer = client.post("/predict", json={"values": window, "levels": [0.9]}).json()
        assert client.get("/model").json()["engine"] == "torch"
    assert answer["prediction"] == pytest.approx(expected, rel=1e-6)
    assert answer["intervals"][0]["lower"] < answer["prediction"] < answer["intervals"][0]["upper"]
    assert "the network gru has no ONNX graph" in caplog.text


def test_an_untrained_network_of_another_package_is_persistence(gru, snapshot):
    from forecast.model.network import build_network, forward_in_batches

    network = build_network(TrainConfig(network=gru, hidden_size=4, likelihood="mse"))
    assert torch.equal(forward_in_batches(network, torch.randn(3, 9, 1)), torch.zeros(3, 1))


def test_a_source_of_this_process_is_read_like_any_other(outside):
    SOURCES.add("walk", outside.read_walk)
    series = load_series("ACME", source="walk", start="2020-02-01")
    assert (series.provenance.source, len(series)) == ("walk", 569)


def test_a_checkpoint_of_a_network_that_is_not_installed_is_refused_with_the_remedy(tiny_result, tmp_path):
    config = tiny_result.checkpoint.config.model_copy(update={"network": "transformer"})
    save_checkpoint(tiny_result.checkpoint.model_copy(update={"config": config}), tmp_path / "other.pt")
    with pytest.raises(
        CheckpointError,
        match=r"`network` transformer: no network has this name.*install the package that adds it",
    ):
        load_checkpoint(tmp_path / "other.pt")


def test_a_network_with_counters_is_saved_and_loaded(snapshot, tmp_path):
    class Normalizing(torch.nn.Module):
        """Batch normalization keeps an integer in its state."""

        def __init__(self, channels, outputs):
            super().__init__()
            self.norm, self.head = torch.nn.BatchNorm1d(channels), torch.nn.Linear(channels, outputs)
            torch.nn.init.zeros_(self.head.weight)
            torch.nn.init.zeros_(self.head.bias)

        def forward(self, inputs):
            return self.head(self.norm(inputs[:, -1]))

    class Architecture(base.Architecture):
        def build(self, config, channels, outputs):
            return Normalizing(channels, outputs)

        def multiply_adds(self, config):
            return 1

    ARCHITECTURES.add("normalizing", Architecture())
    config = TrainConfig(source="snapshot", network="normalizing", max_epochs=1)
    save_checkpoint(train(snapshot, config).checkpoint, tmp_path / "model.pt")
    assert Predictor(tmp_path / "model.pt").predict_next(snapshot.values[-60:].tolist()) > 0


def test_a_metric_may_return_any_kind_of_number(snapshot):
    metric = Metric(squared_errors, of_mean=np.sqrt)
    rows = Rows(np.array([1.0, 2.0]), np.array([1.0, 1.0]))
    assert type(metric(rows.actual, Forecasts(rows.previous))) is float


def installed(directory, name, group, entry):
    """Make ``directory`` an environment in which a package has one entry point."""
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    return str(directory)


def test_a_name_is_given_once_and_an_unknown_one_is_answered_with_those_there_are():
    colours = Registry("colour", "forecast.nothing", {"red": 1})
    colours.add("blue", 2)
    colours.add("blue", 2)
    assert dict(colours) == {"red": 1, "blue": 2}
    with pytest.raises(UsageError, match="there is a colour called 'red' already"):
        colours.add("red", 3)
    with pytest.raises(UsageError, match="`colour` green: no colour has this name; choose one of red, blue"):
        colours.find("green")


def test_a_package_that_cannot_be_loaded_is_named_and_harms_only_its_own_item(tmp_path, monkeypatch):
    (tmp_path / "angry.py").write_text("raise RuntimeError('no licence file')")
    monkeypatch.syspath_prepend(installed(tmp_path, "broken", "forecast.colours", "green = angry:GREEN"))
    colours = Registry("colour", "forecast.colours", {"red": 1})
    assert colours.find("red") == 1
    assert "blue" not in colours
    assert list(colours) == ["red", "green"]
    with pytest.raises(
        UsageError, match=r"'green' of the package broken cannot be loaded \(RuntimeError: no licence file\)"
    ):
        colours.find("green")


def test_an_entry_point_that_names_a_class_instead_of_an_instance_is_refused(tmp_path, monkeypatch):
    (tmp_path / "careless.py").write_text("class Green(int): ...")
    monkeypatch.syspath_prepend(installed(tmp_path, "careless", "forecast.colours", "green = careless:Green"))
    with pytest.raises(UsageError, match="'green' of the package careless is not an instance of int"):
        Registry("colour", "forecast.colours", {"red": 1}, accepts=int).find("green")


def test_a_network_that_does_not_start_as_persistence_is_refused(snapshot):
    class Eager(base.Architecture):
        def build(self, config, channels, outputs):
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(outputs))

        def multiply_adds(self, config):
            return 1

    ARCHITECTURES.add("eager", Eager())
    config = TrainConfig(source="snapshot", network="eager", max_epochs=1)
    with pytest.raises(TrainingError, match="the untrained network eager gives outputs other than zero"):
        train(snapshot, config)


def test_a_package_that_takes_a_name_of_this_one_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(installed(tmp_path, "greedy", "forecast.colours", "red = angry:RED"))
    with pytest.raises(UsageError, match="the package greedy adds a colour 'red', but this name is taken"):
        list(Registry("colour", "forecast.colours", {"red": 1}))


@pytest.mark.parametrize("command", ["train", "backtest"])
def test_an_unknown_network_is_refused_before_any_work(command, capsys):
    assert run(main, [command, "--source", "snapshot", "--network", "nope"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: --network nope: no network has this name; choose one of lstm")
    assert "epochs" not in printed.out
