"""Jobs and models in MLflow: a real server with an SQLite database, and the files of a real job."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from running_job import study_of, wait_until
from test_job import TINY_SPACE, options
from test_market import SEEN
from test_monitoring import free_port
from test_panel import closes, write_long
from test_update import Loop, train_without_a_cluster, walk

from forecast import Predictor, load_checkpoint, save_checkpoint, train
from forecast.cli.command import run
from forecast.config import parse_settings
from forecast.errors import StoreError, TrackingError, UsageError, WindowError
from forecast.inference.predictor import forecast_together, market_of
from forecast.inference.pyfunc import TableModel
from forecast.job_files import PICK_FILE, SCORED_FILE, SUMMARY_FILE
from forecast.live.store import Store
from forecast.prices.panel import load_panel
from forecast.version import DISTRIBUTION
from tune_jobs import models
from tune_jobs.job import run_job
from tune_jobs.mlflow_log import JOB, SHA256, TRIAL, Tracking, quietly, save_model
from tune_jobs.options import TuneOptions
from tune_jobs.space import SPACES

pytestmark = pytest.mark.filterwarnings("ignore:.*outside the training range:UserWarning")
for package in ("mlflow", "flask_cors"):
    pytest.importorskip(package, reason="MLflow and its server are not installed")


@pytest.fixture(scope="module")
def mlflow():
    """The package, imported without its warnings."""
    with quietly():
        import mlflow
        import mlflow.pyfunc
    return mlflow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a tracking server with a registry, which keeps everything in a new directory."""
    place, port = tmp_path_factory.mktemp("mlflow"), free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    kept = ["--backend-store-uri", f"sqlite:///{place / 'mlflow.db'}", "--artifacts-destination", str(place)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Nobody reads a pipe while the tests run, and a full one would stop the server.
    with (place / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--workers", "1", *kept],
            env=os.environ | quiet,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def answers():
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{address}/health", timeout=5).status == 200

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
            wait_until(answers, process)
            yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.fixture(scope="module")
def client(mlflow, server):
    return mlflow.MlflowClient(server, server)


@pytest.fixture(scope="module")
def job(server, cluster, tmp_path_factory):
    """A real job that was logged when it ended, and what it printed."""
    directory = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPACES, "small", TINY_SPACE)
        run_job(options(directory, num_samples=2, members=1, report=True, mlflow=server))
    return directory


@pytest.fixture
def nowhere(monkeypatch):
    """The address of a server that is down."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return f"http://127.0.0.1:{free_port()}"


def runs_of(client, experiment):
    """The job's run, and its nested runs by the number of their trials."""
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    (parent,) = (run for run in found if JOB in run.data.tags)
    nested = {int(run.data.tags[TRIAL]): run for run in found if TRIAL in run.data.tags}
    assert len(nested) == len(found) - 1
    assert {run.data.tags["mlflow.parentRunId"] for run in nested.values()} == {parent.info.run_id}
    return parent, nested


def registered_versions(client, name):
    return client.search_model_versions(f"name = '{name}'")


def aliases_of(client, name):
    return {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}


def loaded(mlflow, server, address, place=None):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server)
    try:
        return mlflow.pyfunc.load_model(address, dst_path=place and str(place))
    finally:
        mlflow.set_tracking_uri(before)


def other_job(directory, source, name, checkpoint=PICK_FILE):
    """The files of another job, whose pick is a checkpoint of the first."""
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns(".lock"))
    shutil.copyfile(source / checkpoint, directory / PICK_FILE)
    summary = json.loads((directory / SUMMARY_FILE).read_text())
    (directory / SUMMARY_FILE).write_text(json.dumps(summary | {"job": name}))
    return directory


@pytest.mark.slow
def test_a_job_is_a_run_with_a_nested_run_for_each_trial(job, client):
    parent, nested = runs_of(client, "BTC-USD")
    summary = json.loads((job / SUMMARY_FILE).read_text())
    trials = {trial.number: trial for trial in study_of(job).trials}
    assert nested.keys() == trials.keys()
    for number, each in nested.items():
        trial = trials[number]
        assert each.data.params == {name: str(value) for name, value in trial.params.items()}
        assert [each.data.metrics[name] for name in ("MAE", "RMSE", "MAPE")] == trial.values
        assert each.data.metrics["seconds"] == trial.user_attrs["seconds"]
        assert each.info.end_time - each.info.start_time == pytest.approx(
            1000 * (trial.datetime_complete - trial.datetime_start).total_seconds(), abs=2
        )
        assert each.info.status == "FINISHED"
    for point in summary["front"]:
        assert nested[point["trial_number"]].data.metrics["test_MAE"] == point["test"]["MAE"]
    assert parent.info.status == "FINISHED"
    assert parent.info.start_time == min(each.info.start_time for each in nested.values())
    assert parent.info.end_time == max(each.info.end_time for each in nested.values())
    assert parent.data.metrics["test_MAE"] == summary["pick"]["test"]["MAE"]
    assert parent.data.params["objectives"] == "mae,rmse,mape"
    assert parent.data.tags["pick"] == str(summary["pick"]["trial_number"])
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "summary.json",
        "pareto_trials.csv",
        "report.html",
        "best_pareto_lstm.pt",
        "scored_pick.pt",
    }


@pytest.mark.slow
def test_the_registered_pick_forecasts_what_the_predictor_does(
    mlflow, job, server, client, snapshot, tmp_path
):
    predictor = Predictor(job / PICK_FILE)
    windows = [snapshot.values[-predictor.rows_used - back :][: predictor.rows_used] for back in (0, 5)]
    model = loaded(mlflow, server, "models:/BTC-USD@pick", tmp_path)
    table = pd.DataFrame({"window": windows})
    found = model.predict(table)
    assert found["prediction"].tolist() == predictor.predict(windows).tolist()
    bounds = predictor.predict_intervals(windows, [0.9])[:, 0, 0]
    assert found[["lower_90", "upper_90"]].to_numpy().tolist() == bounds.tolist()
    later = model.predict(table[:1], params={"horizon": 3, "levels": [0.5]})
    assert later["step"].tolist() == [1, 2, 3]
    assert later["prediction"].tolist() == predictor.predict_steps(windows[:1], 3)[0].tolist()
    assert later.columns.tolist() == ["step", "prediction", "lower_50", "upper_50"]
    assert model.predict(model.input_example)["prediction"].notna().all()
    assert model.metadata.metadata["columns"] == ["Close"]
    assert model.metadata.metadata["sequence_length"] == predictor.sequence_length
    with pytest.raises(WindowError, match="0 values are too few"):
        model.predict(pd.DataFrame({"window": [np.array([])]}))
    (version,) = client.search_model_versions("name = 'BTC-USD'")
    assert version.tags[SHA256] == predictor.whole.sha256
    place = client.download_artifacts(version.run_id, SUMMARY_FILE, str(tmp_path))
    assert json.loads(Path(place).read_text()) == json.loads((job / SUMMARY_FILE).read_text())
    needed = (tmp_path / "requirements.txt").read_text()
    assert {line.partition("==")[0] for line in needed.splitlines()} == {DISTRIBUTION, "mlflow"}


@pytest.mark.slow
def test_a_job_that_is_logged_again_has_no_second_run_or_version(job, server, client):
    before = runs_of(client, "BTC-USD")
    assert models.main(["log", "BTC-USD", str(job), "--mlflow", server]) == 0
    after = runs_of(client, "BTC-USD")
    assert after[0].info.run_id == before[0].info.run_id
    assert {number: run.info for number, run in after[1].items()}.keys() == before[1].keys()
    assert aliases_of(client, "BTC-USD") == {"pick": 1}
    assert len(client.search_logged_models([before[0].info.experiment_id])) == 1


@pytest.mark.slow
def test_a_job_that_is_resumed_when_nothing_is_left_keeps_its_version(job, server, client, cluster):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPACES, "small", TINY_SPACE)
        run_job(options(job, num_samples=2, members=1, report=True, mlflow=server, resume=True))
    assert aliases_of(client, "BTC-USD") == {"pick": 1}
    assert len(registered_versions(client, "BTC-USD")) == 1


@pytest.mark.slow
def test_a_job_of_another_symbol_is_not_logged_under_a_models_name(job, server, client, tmp_path, capsys):
    directory = other_job(tmp_path / "job", job, "of another symbol")
    model = load_checkpoint(job / PICK_FILE)
    config = model.config.model_copy(update={"symbol": "ACME"})
    save_checkpoint(model.model_copy(update={"config": config}), directory / PICK_FILE)
    assert run(models.main, ["log", "BTC-USD", str(directory), "--mlflow", server]) == 1
    assert "BTC-USD has models of BTC-USD (Close), this one is of ACME (Close)" in capsys.readouterr().err
    assert aliases_of(client, "BTC-USD") == {"pick": 1}


@pytest.mark.slow
def test_persistence_has_the_rows_of_the_objectives_and_states_that_are_over_are_zero(
    job, server, client, tmp_path
):
    directory = other_job(tmp_path / "job", job, "on test rows")
    summary = json.loads((directory / SUMMARY_FILE).read_text())
    waiting = {**summary["trials"], "WAITING": 3}
    for objectives_on, trials in (("validation", waiting), ("test", summary["trials"])):
        changed = summary | {"objectives_on": objectives_on, "trials": trials}
        (directory / SUMMARY_FILE).write_text(json.dumps(changed))
        Tracking(server).log_job("rows", directory)
        (found,) = client.search_runs(
            [client.get_experiment_by_name("rows").experiment_id], f"tags.`{JOB}` != ''"
        )
        assert found.data.metrics["persistence_MAE"] == summary["persistence"][objectives_on]["MAE"]
        assert found.data.metrics["trials_waiting"] == trials.get("WAITING", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stopped_by": "SIGINT"}, "has no finished job; finish it with `resume`"),
        ({"objectives_on": None}, "has a summary.json without objectives_on"),
    ],
)
def test_a_job_that_is_not_finished_or_not_of_this_version_is_not_logged(
    job, server, tmp_path, changes, message
):
    directory = other_job(tmp_path / "job", job, "unfinished")
    summary = json.loads((directory / SUMMARY_FILE).read_text()) | changes
    (directory / SUMMARY_FILE).write_text(
        json.dumps(
            {name: value for name, value in summary.items() if value is not None or name not in changes}
        )
    )
    with pytest.raises(StoreError, match=message):
        Tracking(server).log_job("unfinished", directory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "calls"),
    [
        ("log_batch", 2),
        ("log_artifact", 1),
        ("log_model_artifacts", 0),
        ("create_model_version", 0),
    ],
)
def test_a_log_that_is_killed_in_between_is_completed(mlflow, job, server, client, monkeypatch, step, calls):
    name = f"killed {step}"
    done, original = [], getattr(mlflow.MlflowClient, step)

    def killed(*arguments, **named):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(arguments)
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, step, killed)
        with pytest.raises(KeyboardInterrupt):
            Tracking(server).log_job(name, job)
    Tracking(server).log_job(name, job)
    parent, nested = runs_of(client, name)
    complete, trials = runs_of(client, "BTC-USD")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == complete.data.metrics
    assert len(client.list_artifacts(parent.info.run_id)) == 5
    for number, each in nested.items():
        assert (each.info.status, each.data.params) == ("FINISHED", trials[number].data.params)
        assert each.data.metrics == trials[number].data.metrics
    assert nested.keys() == trials.keys()
    assert aliases_of(client, name) == {"pick": 1}
    (model,) = client.search_logged_models([parent.info.experiment_id])
    assert model.status.name == "READY"


@pytest.mark.slow
def test_a_job_whose_server_is_down_does_not_start(cluster, tmp_path, nowhere):
    with pytest.raises(TrackingError, match=f"{nowhere} does not answer; start the server"):
        run_job(options(tmp_path / "job", mlflow=nowhere))
    assert not (tmp_path / "job" / "optuna_study.db").exists()


@pytest.mark.slow
def test_a_job_whose_server_goes_down_is_logged_later_by_the_command_that_it_prints(
    job, server, client, nowhere, capsys
):
    assert not Tracking(nowhere).log_or_warn("later", job, Console())
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    command = line.partition("log it later: python -m tune_jobs.models ")[2]
    assert command == f"log later {job} --mlflow {nowhere}"
    assert models.main(command.replace(nowhere, server).split()) == 0
    assert runs_of(client, "later")[0].info.status == "FINISHED"
    printed = capsys.readouterr()
    assert printed.out.startswith(f"MLflow: {server}/#/experiments/")
    assert len(printed.out.splitlines()) == 1
    assert printed.err == ""


@pytest.mark.slow
def test_aliases_follow_the_store_and_a_version_that_is_missing_is_logged(
    mlflow, job, server, client, tmp_path, snapshot
):
    name, store = "FX:EUR/USD", Store(tmp_path / "models")
    one = store.add(name, other_job(tmp_path / "one", job, "one"), "2020-01-01")
    two = store.add(name, other_job(tmp_path / "two", job, "two", SCORED_FILE), "2020-01-02")
    registered = "FX-EUR-USD"
    store.promote(name, one.version)
    Tracking(server).follow(store, name, two)
    versions = {each.tags[SHA256]: int(each.version) for each in registered_versions(client, registered)}
    first, second = versions[one.sha256], versions[two.sha256]
    assert aliases_of(client, registered) == {"champion": first, "challenger": second, "pick": second}

    where = ["--models", str(store.root), "--mlflow", server]
    assert models.main(["promote", name, two.version, *where]) == 0
    assert aliases_of(client, registered) == {"champion": second, "pick": second}
    window = snapshot.values[-300:]
    found = loaded(mlflow, server, f"models:/{registered}@champion").predict(
        pd.DataFrame({"window": [window]})
    )
    assert found["prediction"][0] == Predictor(store.checkpoint(name, two.version)).predict_next(window)

    assert models.main(["rollback", name, *where]) == 0
    assert aliases_of(client, registered)["champion"] == first
    assert len(registered_versions(client, registered)) == 2

    bare = tmp_path / "bare"
    bare.mkdir()
    another = load_checkpoint(job / PICK_FILE).model_copy(update={"created": "2020-01-03T00:00:00+00:00"})
    save_checkpoint(another, bare / PICK_FILE)
    third = store.add(name, bare, "2020-01-03")
    store.promote(name, third.version)
    with pytest.raises(StoreError, match=f"no champion of {name} now: .* without a job's summary"):
        Tracking(server).follow(store, name, two)
    assert aliases_of(client, registered) == {"challenger": second, "pick": second}


@pytest.mark.slow
def test_a_version_without_a_job_s_summary_is_a_true_warning(mlflow, job, server, client, tmp_path, capsys):
    store = Store(tmp_path / "models")
    directory = other_job(tmp_path / "one", job, "one")
    (directory / SUMMARY_FILE).unlink()
    one = store.add("BARE", directory, "2020-01-01")
    assert models.main(["promote", "BARE", one.version, "--models", str(store.root), "--mlflow", server]) == 0
    assert store.current("BARE") == one
    warning = " ".join(capsys.readouterr().err.split())
    assert (
        f"MLflow has no champion of BARE now: {one.version} was added without a job's summary.json" in warning
    )
    assert "the next update" not in warning


@pytest.mark.slow
def test_an_update_goes_on_without_the_server_and_the_next_one_registers_its_champion(
    job, server, client, nowhere, tmp_path, monkeypatch, capsys
):
    def quick(given, _cluster=None):
        outcome = train_without_a_cluster(given)
        summary = json.loads((job / SUMMARY_FILE).read_text())
        (given.output_dir / SUMMARY_FILE).write_text(json.dumps(summary | {"job": "of an update"}))
        return outcome

    monkeypatch.setattr("tune_jobs.job.run_job", quick)
    loop = Loop(tmp_path, {"WALK": walk()})
    assert loop.run(300, "--mlflow", nowhere) == 0
    lines = capsys.readouterr().err.splitlines()
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert "log it later: python -m tune_jobs.models log WALK" in warnings[0]
    assert "the next update with --mlflow sets the aliases of WALK" in warnings[1]
    (kept,) = (loop.models / "WALK" / ".jobs").iterdir()
    assert loop.run(300, "--mlflow", server) == 0
    assert aliases_of(client, "WALK") == {"champion": 1, "pick": 1}
    shutil.copy(job / "optuna_study.db", kept)
    assert models.main(["log", "WALK", str(kept), "--mlflow", server]) == 0
    assert len(runs_of(client, "WALK")[1]) == 2


def test_without_mlflow_a_line_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(models.main, ["log", "X", str(tmp_path), "--mlflow", "http://localhost:5000"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: --mlflow http://localhost:5000: MLflow is not installed; pip install "
        "'pareto-price-forecaster[mlflow]'"
    )


@pytest.mark.parametrize("secret", ["me:geheim@", "geheim@", "me:${PASSWORD}@"])
def test_an_address_with_a_password_is_refused_without_showing_it(secret):
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        parse_settings(TuneOptions, {"mlflow": f"https://{secret}mlflow.example.com"})
    assert "geheim" not in str(caught.value)


def test_what_is_no_address_is_refused_before_a_job(tmp_path):
    with pytest.raises(UsageError, match="give an address, such as http://localhost:5000"):
        parse_settings(TuneOptions, {"mlflow": "127.0.0.1:5000"})


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    """A model of many symbols that sees the market, and the windows of one session."""
    place = tmp_path_factory.mktemp("pooled")
    frame = closes(rows=400, symbols=tuple("ABCDEFGH"))
    panel = load_panel(("all",), source=str(write_long(frame, place)))
    config = SEEN.model_copy(update={"max_epochs": 1, "members": 1})
    save_checkpoint(train(panel, config).checkpoint, place / "pooled.pt")
    predictor = Predictor(place / "pooled.pt")
    return predictor, {name: frame[name].to_numpy()[-predictor.rows_used :] for name in frame}


def test_a_table_of_many_symbols_has_each_symbols_forecast(pooled):
    predictor, windows = pooled
    table = pd.DataFrame({"symbol": list(windows), "window": list(windows.values())}, index=range(5, 13))
    with pytest.warns(UserWarning, match="does not know what the market did"):
        alone = TableModel(predictor).predict(table, {"levels": [0.9], "horizon": 2})
    assert alone.index.tolist() == np.repeat(range(5, 13), 2).tolist()
    for symbol, (_, found) in zip(windows, alone.groupby(level=0), strict=True):
        own = predictor.of_symbol(symbol)
        assert found["prediction"].tolist() == own.predict_steps([windows[symbol]], 2)[0].tolist()

    together = TableModel(predictor).predict(table, {"levels": [0.9], "same_session": True})
    each = [predictor.of_symbol(symbol) for symbol in windows]
    market = market_of(each, list(windows.values()))
    expected = forecast_together(each, list(windows.values()), market)
    assert together["prediction"].tolist() == [one.prices[0] for one in expected]
    assert together["lower_90"].tolist() == [one.intervals([0.9])[0, 0, 0] for one in expected]


def test_a_symbol_that_a_model_has_never_seen_is_normalized_by_its_window(pooled):
    predictor, windows = pooled
    window = 3 * windows["A"]
    with pytest.warns(UserWarning, match="does not know what the market did"):
        found = TableModel(predictor).predict(pd.DataFrame({"symbol": ["NEW"], "window": [window]}))
    assert found["prediction"].tolist() == [predictor.of_window(window, "NEW").predict_next(window)]
    two = pd.DataFrame({"symbol": ["A", "B"], "window": [windows["A"], windows["B"][:3]]})
    with pytest.raises(WindowError, match=r"^B: 3 values are too few"):
        TableModel(predictor).predict(two)
    with pytest.raises(WindowError, match="no column `symbol`"):
        TableModel(predictor).predict(pd.DataFrame({"window": [window]}))


def test_a_saved_model_takes_the_columns_and_parameters_of_its_signature(mlflow, pooled, tmp_path):
    predictor, windows = pooled
    save_model(predictor, tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert model.metadata.get_input_schema().input_names() == ["window", "symbol"]
    table = pd.DataFrame({"symbol": list(windows), "window": list(windows.values())})
    found = model.predict(table, params={"same_session": True})
    assert found.equals(TableModel(predictor).predict(table, {"same_session": True}))
    with pytest.raises(mlflow.exceptions.MlflowException, match="window"):
        model.predict(table.drop(columns="window"))
