"""Another package adds a source, a metric that becomes an objective, and a network, without a change here."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running_job import study_of
from serving_here import serving

from forecast import Predictor, TrainConfig, load_checkpoint, load_series, save_checkpoint, train
from forecast.errors import CheckpointError, UsageError
from forecast.model.network import ARCHITECTURES
from forecast.prices.source import SOURCES
from forecast.registry import Registry

OUTSIDE = Path(__file__).with_name("outside")


@pytest.fixture
def outside(monkeypatch):
    """The package's module, importable here; its entry points are found only in other processes."""
    monkeypatch.syspath_prepend(str(OUTSIDE))
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
    # The study records the network that its trials share.
    again = run_with_the_package(
        *("tune_jobs.pareto", "--source", "walk", "--symbol", "ACME", "--likelihood", "student_t"),
        *("--objectives", "mae,tail", "--strategy", "min_tail", "--space", "small", "--resume"),
        *("--output-dir", str(tmp_path)),
    )
    assert again.returncode == 1
    assert "was made with network gru, but this job has lstm" in again.stderr


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

    network = build_network(TrainConfig(network=gru, hidden_size=4))
    assert torch.equal(forward_in_batches(network, torch.randn(3, 9, 1)), torch.zeros(3, 1))


def test_a_source_of_this_process_is_read_like_any_other(outside):
    SOURCES.add("walk", outside.read_walk)
    series = load_series("ACME", source="walk", start="2020-02-01")
    assert (series.provenance.source, len(series)) == ("walk", 569)


def test_a_checkpoint_of_a_network_that_is_not_installed_is_refused_with_the_remedy(tiny_result, tmp_path):
    config = tiny_result.checkpoint.config.model_copy(update={"network": "transformer"})
    save_checkpoint(tiny_result.checkpoint.model_copy(update={"config": config}), tmp_path / "other.pt")
    with pytest.raises(
        CheckpointError, match=r"there is no network 'transformer'.*install the package that adds the network"
    ):
        load_checkpoint(tmp_path / "other.pt")


def test_a_name_is_given_once_and_an_unknown_one_is_answered_with_those_there_are():
    colours = Registry("colour", "forecast.nothing", {"red": 1})
    colours.add("blue", 2)
    colours.add("blue", 2)
    with pytest.raises(UsageError, match="there is a colour called 'red' already"):
        colours.add("red", 3)
    with pytest.raises(UsageError, match="there is no colour 'green'; choose one of: red, blue"):
        colours.find("green")


def test_a_package_that_cannot_be_loaded_is_named(tmp_path):
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[forecast.sources]\nlost = not_there:read\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "forecast", "train", "--source", "lost"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert "the source 'lost' of an installed package cannot be loaded" in done.stderr
    assert "fix or uninstall not_there" in done.stderr
