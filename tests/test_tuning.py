"""The tuning job's parts that need no cluster: study, selection, options, command line."""

import contextlib
import errno
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from processes import catches
from rich.console import Console
from running_job import write_summary

from forecast.cli.command import run
from forecast.config import TrainConfig
from forecast.errors import StudyError, UsageError
from forecast.model.training import Trainer, evaluate_part
from forecast.model.windows import prepare
from forecast.scores.metrics import value_text
from tune_jobs import databases
from tune_jobs import study as studies
from tune_jobs.cluster import SETTINGS, _answering, _give_token, connected
from tune_jobs.costs import (
    BOOTSTRAPS,
    Preference,
    SampledCost,
    persistence_losses,
    row_losses,
    sample_cost,
)
from tune_jobs.databases import STUDY_FILE, SqliteFile
from tune_jobs.disks import full_disk_named
from tune_jobs.folds import FoldTrainers, prepare_earlier_folds
from tune_jobs.luck import Luck, p_value_of_best
from tune_jobs.options import TuneOptions
from tune_jobs.pareto import main
from tune_jobs.placement import Node, Placement
from tune_jobs.prepare import persistence_metrics
from tune_jobs.progress import SearchProgress
from tune_jobs.scheduler import BLOCKED_AFTER, Rungs
from tune_jobs.searcher import Finished, put_back_running, trial_checkpoint_path
from tune_jobs.selection import FrontPoint, ScoredPoint, pick, pick_within_one_se
from tune_jobs.space import SPACES
from tune_jobs.states import StateStore
from tune_jobs.tables import front_table, luck_lines
from tune_jobs.trial import (
    EXPECTED_WORK,
    LAST_RUNG,
    TYPICAL_SHARE,
    most_epochs,
    next_rung,
    trial_cost,
    unit_of_work,
)
from tune_jobs.warm_start import read_warm_start

PERSISTENCE = {"MAE": 10.0, "RMSE": 20.0, "MAPE": 2.0}


@pytest.fixture
def open_study(tmp_path):
    storages = []

    def open_(name="study", resume=False, basis=None):
        database = SqliteFile(tmp_path / "study.db")
        storages.append(studies.open_storage(database))
        return studies.open_study(
            storages[-1],
            name,
            database=database,
            resume=resume,
            objectives=["MAE", "RMSE", "MAPE"],
            basis=basis or {},
        )

    yield open_
    for storage in storages:
        studies.close_storage(storage, SqliteFile(tmp_path / "study.db"))


def point(tiny_result, number, mae, rmse, mape, hidden=8):
    state = {
        name: value[:1] if hidden == 1 else value
        for name, value in tiny_result.checkpoint.model_state.items()
    }
    checkpoint = tiny_result.checkpoint.model_copy(update={"model_state": state})
    return FrontPoint(number, {"MAE": mae, "RMSE": rmse, "MAPE": mape}, {}, checkpoint, Path("x.pt"))


@pytest.mark.parametrize(("strategy", "number"), [("min_mae", 0), ("min_rmse", 1), ("min_mape", 2)])
def test_each_strategy_takes_the_least_of_its_objective(tiny_result, strategy, number):
    front = [point(tiny_result, *p) for p in [(0, 1, 9, 9), (1, 9, 1, 9), (2, 9, 9, 1)]]
    assert pick(front, Preference(strategy, PERSISTENCE)).number == number


def test_weighted_divides_each_objective_by_persistences(tiny_result):
    front = [point(tiny_result, 0, 9, 20, 2.2), point(tiny_result, 1, 11, 18, 1.8)]
    # 0.9 + 1.0 + 1.1 = 3.0 against 1.1 + 0.9 + 0.9 = 2.9
    assert pick(front, Preference("weighted", PERSISTENCE)).number == 1
    assert pick(front, Preference("weighted", PERSISTENCE, (1, 0, 0))).number == 0


def test_a_tie_goes_to_the_smaller_model(tiny_result):
    front = [point(tiny_result, 0, 1, 1, 1), point(tiny_result, 1, 1, 1, 1, hidden=1)]
    assert pick(front, Preference("min_mape", PERSISTENCE)).number == 1


def test_rungs_grow_threefold():
    assert [next_rung(work) for work in (0, 0.9, 1, 2.9, 26)] == [1, 1, 3, 3, 27]


def test_a_dear_configuration_is_compared_within_an_epoch_and_a_cheap_one_after_many(snapshot):
    options = TuneOptions(source="snapshot")
    space, prepared = SPACES["full"].of(options), prepare(snapshot, options)
    epochs = {
        name: most_epochs(options, space, params, prepared)
        for name, params in {
            "typical": space.typical,
            "dear": {"hidden_size": 256, "num_layers": 4, "sequence_length": 120},
            "cheap": {"hidden_size": 32, "num_layers": 1, "sequence_length": 20},
        }.items()
    }
    assert epochs["typical"] == pytest.approx(LAST_RUNG * TYPICAL_SHARE)
    assert epochs["dear"] < 1 < 100 < epochs["cheap"]
    cost = trial_cost(options, space.typical)
    windows = len(prepared.target_rows("train", space.typical["sequence_length"]))
    assert unit_of_work(options, space, prepared) == pytest.approx(TYPICAL_SHARE * windows * cost)


def test_dropout_is_sampled_only_between_layers():
    study = optuna.create_study(directions=["minimize"] * 3, sampler=optuna.samplers.RandomSampler(seed=0))
    seen = {}
    for _ in range(40):
        trial = study.ask()
        SPACES["full"](trial)
        seen.setdefault(trial.params["num_layers"] > 1, set()).add("dropout" in trial.params)
    assert seen == {True: {True}, False: {False}}


def test_the_full_space_is_the_originals():
    space = SPACES["full"]
    assert space.sequence_length == (20, 120, 10)
    assert space.hidden_size == (32, 64, 128, 256)
    assert space.num_layers == (1, 4)
    assert space.dropout == (0.0, 0.5)
    assert space.learning_rate == (1e-4, 5e-3)
    assert space.batch_size == (32, 64, 128)
    assert space.max_epochs == (30, 120, 30)
    assert space.patience == (10, 25, 5)


def test_a_new_study_names_its_objectives(open_study):
    assert open_study().metric_names == ["MAE", "RMSE", "MAPE"]


def test_an_existing_study_is_not_touched_without_resume(open_study):
    open_study().ask()
    with pytest.raises(
        StudyError, match="already has 1 trials; continue the study with `resume`, or start another"
    ):
        open_study()
    assert len(open_study(resume=True).trials) == 1


def test_a_study_with_other_objectives_is_refused(tmp_path, open_study):
    optuna.create_study(
        study_name="study", storage=f"sqlite:///{tmp_path / 'study.db'}", direction="maximize"
    )
    with pytest.raises(
        StudyError, match=r"other objectives \(maximize\) than MAE, RMSE, MAPE; use the same `objectives`"
    ):
        open_study()


@pytest.mark.parametrize(
    ("recorded", "asked", "message"),
    [
        ({"network": "gru"}, {"network": "lstm"}, "made with network gru, but this job has lstm"),
        ({"rows": "a"}, {"network": "gru"}, "made with network lstm, but this job has gru"),
        ({"rows": "a"}, {"likelihood": "student_t"}, "made with likelihood mse, but this job has student_t"),
        ({"rows": "a"}, {"validation_folds": 2}, "made with validation_folds 1, but this job has 2"),
        (
            {"validation_folds": 3},
            {"validation_folds": 1},
            "made with validation_folds 3, but this job has 1",
        ),
    ],
)
def test_a_study_of_another_network_or_likelihood_or_of_other_folds_is_not_resumed_even_where_it_recorded_none(
    open_study, recorded, asked, message
):
    open_study(basis=recorded).ask()
    with pytest.raises(StudyError, match=message):
        open_study(resume=True, basis=asked)


def test_a_study_of_other_data_is_not_resumed(open_study):
    open_study(basis={"rows": "a"}).ask()
    with pytest.raises(StudyError, match="made with rows a, but this job has b"):
        open_study(resume=True, basis={"rows": "b"})


def test_a_damaged_database_is_one_clear_line(tmp_path):
    path = tmp_path / "study.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StudyError, match=r"^the study's database [^\n]*study\.db cannot be used[^\n]*$"):
        studies.open_storage(SqliteFile(path))


def test_trials_of_a_dead_driver_fail_and_are_queued_again_once(open_study):
    study = open_study()
    SPACES["small"](trial := study.ask())
    assert studies.put_back_running(study) == [0]
    assert studies.put_back_running(study) == []
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert study.trials[0].user_attrs["reason"] == "interrupted"
    again = study.ask()
    SPACES["small"](again)
    assert again.params == trial.params


def test_a_trial_killed_while_it_was_asked_for_again_keeps_the_parameters_it_was_queued_with(open_study):
    study = open_study()
    SPACES["small"](trial := study.ask())
    studies.put_back_running(study)
    study.ask()  # taken from the queue, and killed before a single parameter was written
    assert study.trials[1].params == {}
    studies.put_back_running(study)
    SPACES["small"](again := study.ask())
    assert again.number == 2
    assert again.params == trial.params


def test_a_trial_put_back_leaves_no_checkpoint_behind(open_study, tmp_path):
    study = open_study()
    study.tell(study.ask(), [1.0, 1.0, 1.0])
    study.ask()
    for number in (0, 1):  # the second was killed after it was written and before the study knew
        trial_checkpoint_path(tmp_path, number).touch()
    assert put_back_running(study, tmp_path) == 1
    assert [path.name for path in tmp_path.glob("trial_*")] == ["trial_00000.pt"]


def test_a_resumed_search_compares_new_trials_with_those_of_before():
    placement = Placement(ask_cluster=lambda: [Node(2)])
    earlier = [[(1, 1.0), (3, 0.5)], [(1, 2.0)], [(1, 3.0)]]

    def decision(rungs, loss):
        scheduler = Rungs(placement, rungs)
        trial = SimpleNamespace(trial_id="new", status="RUNNING", stub=False)
        scheduler.on_trial_add(None, trial)
        return scheduler.on_trial_result(None, trial, {"work": 1, "val_loss_best": loss})

    assert decision([], 2.5) == Rungs.CONTINUE
    assert decision(earlier, 2.5) == Rungs.STOP
    assert decision(earlier, 0.9) == Rungs.CONTINUE


def test_cores_are_given_up_for_a_gpu_that_has_waited_for_one_longer_than_a_process_takes_to_start(
    monkeypatch,
):
    now = 0.0
    monkeypatch.setattr("tune_jobs.scheduler.time.monotonic", lambda: now)
    placement = Placement(
        ask_cluster=lambda: [Node(2, 1), Node(1)], clock=lambda: now, gpus_per_trial=0.5, gpu_from=10
    )
    scheduler = Rungs(placement, [])
    trials = [
        SimpleNamespace(trial_id=name, status="RUNNING", PENDING="PENDING", RUNNING="RUNNING")
        for name in "abc"
    ]
    for trial, cost in zip(trials, [100, 100, 1], strict=True):
        placement.place(trial.trial_id, cost)
    trials[1].status = "PENDING"
    now = 100.0
    scheduler._look_for_blocked_gpu(trials)
    assert not scheduler._gpu_is_blocked
    now += BLOCKED_AFTER
    scheduler._look_for_blocked_gpu(trials)
    assert scheduler._gpu_is_blocked
    trials[1].status = "RUNNING"
    scheduler._look_for_blocked_gpu(trials)
    assert not scheduler._gpu_is_blocked


@contextlib.contextmanager
def answering_with(answer):
    """The address of a server that answers every greeting with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_all():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.recv(100)
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=answer_all, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_a_cluster_that_was_killed_and_left_its_address_is_not_waited_for(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as not_listening:
        not_listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{not_listening.getsockname()[1]}"
        monkeypatch.setattr("tune_jobs.cluster.find_cluster", lambda _: address)
        assert _answering(None) == "local"
        with pytest.raises(ConnectionError):
            _answering("auto")
    with answering_with(bytes([0, 0, 0, SETTINGS])) as address:
        monkeypatch.setattr("tune_jobs.cluster.find_cluster", lambda _: address)
        assert _answering(None) == _answering("auto") == "auto"
        assert _answering(address) == address
    monkeypatch.setattr("tune_jobs.cluster.find_cluster", lambda _: None)
    assert _answering(None) == "local"


def failure_to_connect(address):
    with pytest.MonkeyPatch.context() as patch:
        # This process may be connected to the cluster of the test session.
        patch.setattr("tune_jobs.cluster.ray.is_initialized", lambda: False)
        with pytest.raises((StudyError, UsageError)) as failure, connected(address):
            pass
    return str(failure.value)


@pytest.mark.parametrize("option", [None, "auto"])
def test_an_address_in_the_environment_without_a_cluster_is_named_with_its_remedy(monkeypatch, option):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    message = failure_to_connect(option)
    assert message.startswith("RAY_ADDRESS 127.0.0.1:1: there is no Ray cluster ([Errno 111]")
    assert message.endswith("or unset RAY_ADDRESS for a local one")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert failure_to_connect(option).startswith("RAY_ADDRESS ray://head:10001: the job must run inside")


def test_a_server_that_is_not_ray_is_refused_at_once(monkeypatch):
    with answering_with(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        assert f"`address` {address}: there is no Ray cluster (what listens" in failure_to_connect(address)
    monkeypatch.setattr("tune_jobs.cluster.ADDRESS_WAIT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "(timed out)" in failure_to_connect(f"127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_directory_too_long_for_sockets_is_named_before_ray_starts(monkeypatch, variable):
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "/tmp/" + "x" * 60)
    message = failure_to_connect("local")
    assert message.startswith(f"{variable} /tmp/xxx")
    assert "at most 107 bytes; set RAY_TMPDIR to a directory whose path has at most 4" in message


def test_a_cluster_of_a_user_without_a_home_gets_its_token_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    _give_token()
    assert os.environ["RAY_AUTH_TOKEN"] == ""
    monkeypatch.setenv("HOME", "/dev/null/nothing")
    _give_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_full_disk_is_named_with_its_remedy_whatever_error_it_causes(monkeypatch, tmp_path):
    options = TuneOptions(output_dir=tmp_path / "out", storage_path=str(tmp_path / "states"))
    full = {tmp_path / "out": 10**9, tmp_path / "states": 0}
    monkeypatch.setattr("tune_jobs.disks._free", lambda place: full.get(place, 10**9))
    for error in (EOFError("Ran out of input"), OSError(errno.ENOSPC, "no"), StudyError("disk is full")):
        with (
            pytest.raises(
                StudyError, match=r"the disk of .*/states is full .* choose another `storage_path`"
            ),
            full_disk_named(options),
        ):
            raise error
    with pytest.raises(ValueError, match="wrong"), full_disk_named(options):
        raise ValueError("wrong")
    full[tmp_path / "states"] = 10**9
    with pytest.raises(EOFError), full_disk_named(options):
        raise EOFError


def test_a_locked_study_is_refused_soon_with_its_file_and_the_remedy(open_study, tmp_path, monkeypatch):
    open_study()
    monkeypatch.setattr(databases, "OPEN_WAIT", 0.2)
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with pytest.raises(
            StudyError,
            match=r"/study.db cannot be used \(database is locked\); close the other program .*`resume`",
        ):
            open_study(resume=True)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("after", [0, 0.2])
def test_a_signal_during_imports_is_one_line_and_exit_code_130(tmp_path, number, after):
    command = [sys.executable, "-m", "tune_jobs.pareto", "--source", "snapshot", "--output-dir", tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Until then, the interpreter starts, and SIGTERM ends it as it ends every process.
    while not catches(process.pid, signal.SIGTERM):
        time.sleep(0.001)
    time.sleep(after)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_a_job_is_no_ray_client(tmp_path):
    with (
        pytest.raises(UsageError, match=r"`address` ray://head:10001: .* run it on the head"),
        connected("ray://head:10001"),
    ):
        pass


def test_a_storage_path_may_be_relative_and_is_not_removed_with_the_states_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = StateStore.at("shared", "job")
    assert store.path == str(tmp_path / "shared" / "job")
    (tmp_path / "shared" / "job").mkdir(parents=True)
    store.remove()
    assert list((tmp_path / "shared").iterdir()) == []
    assert StateStore.at("s3://bucket/tune", "job").path == "s3://bucket/tune/job"


def test_a_job_killed_while_it_puts_a_trial_back_queues_it_only_once(open_study, monkeypatch):
    study = open_study()
    SPACES["small"](study.ask())
    with monkeypatch.context() as patch:
        patch.setattr(studies, "fail", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            studies.put_back_running(study)
    studies.put_back_running(study)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]


CONFIGURATION = {
    "sequence_length": 40,
    "hidden_size": 32,
    "num_layers": 1,
    "dropout": 0.0,
    "learning_rate": 0.00123456789,
    "batch_size": 64,
    "max_epochs": 30,
    "patience": 10,
    "volatility": "gjr",
}
SMALL_SPACE = SPACES["small"].of(TuneOptions())
GIVEN_TO_A_TRIAL = {name: value for name, value in CONFIGURATION.items() if name != "dropout"}


def earlier_front(directory):
    """The summary of a job whose pick is not the best of its front by its strategy."""
    points = [(7, 1.0, 3.0, 20), (3, 2.0, 2.0, 30), (5, 3.0, 1.0, 40), (9, 4.0, 4.0, 50)]
    front = [
        (number, mae, mape, CONFIGURATION | {"sequence_length": length})
        for number, mae, mape, length in points
    ]
    return write_summary(directory, *front, pick=3)


def lengths(study):
    return [trial.system_attrs["fixed_params"]["sequence_length"] for trial in study.trials]


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({}, [3, 5, 7, 9]),
        ({"strategy": "min_mae"}, [3, 7, 5, 9]),
        ({"strategy": "weighted", "options": {"weights": [2.0, 1.0]}}, [3, 7, 5, 9]),
    ],
)
def test_a_warm_start_tries_the_pick_and_then_the_front_best_first_by_the_earlier_strategy(
    tmp_path, changes, numbers
):
    summary = earlier_front(tmp_path) / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | changes))
    assert [each.number for each in read_warm_start(tmp_path).configurations] == numbers


def test_a_queued_configuration_is_run_with_exactly_the_earlier_hyperparameters(open_study, tmp_path):
    earlier = read_warm_start(write_summary(tmp_path, (0, 1.0, 1.0, CONFIGURATION)))
    found = studies.queue_first(study := open_study(), earlier, SMALL_SPACE, 9)
    SMALL_SPACE(trial := study.ask())
    assert trial.params == GIVEN_TO_A_TRIAL
    assert (found["trials"], found["skipped"]) == ([{"trial_number": 0, "earlier_trial": 0}], [])


def test_a_configuration_with_a_value_that_the_space_lacks_is_skipped_for_that_reason():
    plain = SPACES["small"]
    for change in (
        {"hidden_size": 256},
        {"sequence_length": 45},
        {"sequence_length": 120},
        {"num_layers": 4},
        {"num_layers": 2, "dropout": 0.6},
        {"learning_rate": 0.1},
        {"volatility": "range"},
        {"hidden_size": "32"},
        {"max_epochs": None},
    ):
        name, value = list(change.items())[-1]
        with pytest.raises(ValueError, match=f"^{name} {value}$"):
            SMALL_SPACE.sampled_as(CONFIGURATION | change)
    # What only the earlier space had has no effect here; what only this one has was at its default there.
    assert "volatility" not in plain.sampled_as(CONFIGURATION)
    older = {name: value for name, value in CONFIGURATION.items() if name != "volatility"}
    assert SMALL_SPACE.sampled_as(older)["volatility"] == "ewma"
    fixed = SMALL_SPACE.of(TuneOptions(), TrainConfig(hidden_size=64))
    with pytest.raises(ValueError, match=r"^hidden_size 32$"):
        fixed.sampled_as(CONFIGURATION)


@pytest.mark.parametrize("killed_after", [0, 1, 2, 3])
def test_a_job_killed_while_it_queues_or_runs_a_warm_start_queues_each_configuration_once(
    open_study, tmp_path, killed_after
):
    earlier = read_warm_start(earlier_front(tmp_path))
    study = open_study()
    with pytest.MonkeyPatch.context() as patch:
        enqueue, calls = study.enqueue_trial, []

        def dying(*arguments, **named):
            if len(calls) == killed_after:
                raise KeyboardInterrupt
            calls.append(enqueue(*arguments, **named))

        patch.setattr(study, "enqueue_trial", dying)
        with pytest.raises(KeyboardInterrupt):
            studies.queue_first(study, earlier, SMALL_SPACE, 4)
    if killed_after > 1:
        SMALL_SPACE(study.ask())
        study.tell(0, [1.0, 1.0, 1.0])
        SMALL_SPACE(study.ask())  # running as the job is killed
        studies.put_back_running(study)
    for _ in range(2):
        found = studies.queue_first(study, earlier, SMALL_SPACE, studies.remaining(study, 4))
    tried = [trial for trial in study.trials if trial.state != TrialState.FAIL]
    assert len(tried) == len(found["trials"]) == 4
    assert sorted(each["earlier_trial"] for each in found["trials"]) == [3, 5, 7, 9]
    assert sorted(lengths(study))[-1] == 50
    assert set(lengths(study)) == {20, 30, 40, 50}


def test_a_warm_start_queues_no_more_than_the_job_has_to_run(open_study, tmp_path):
    earlier = read_warm_start(earlier_front(tmp_path))
    study = open_study()
    studies.queue_first(study, earlier, SMALL_SPACE, studies.remaining(study, 2))
    assert lengths(study) == [30, 40]
    for _ in range(2):
        study.tell(study.ask(), [1.0, 1.0, 1.0])
    # More samples later: the configurations that are left, and none twice.
    studies.queue_first(study, earlier, SMALL_SPACE, studies.remaining(study, 3))
    assert lengths(study) == [30, 40, 20]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            "its summary.json cannot be used (No such file or directory); give the directory of a job that",
        ),
        ("{", "its summary.json cannot be used (Invalid JSON: EOF"),
        ("{}", "its summary.json cannot be used (pick: Field required)"),
        ({"pick": None, "front": []}, "no trial of that job finished"),
        ({"strategy": "min_tail"}, "there is no objective 'tail'"),
    ],
)
def test_a_warm_start_from_no_job_or_a_damaged_one_is_one_line_before_anything_starts(
    tmp_path, content, message, capsys
):
    if isinstance(content, dict):
        write_summary(tmp_path, (0, 1.0, 1.0, CONFIGURATION), **content)
    elif content is not None:
        (tmp_path / "summary.json").write_text(content)
    arguments = ["--source", "snapshot", "--output-dir", str(tmp_path / "out"), "--warm-start", str(tmp_path)]
    assert run(main, arguments) == 1
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: --warm-start {tmp_path}: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_interrupted_trials_do_not_count_as_samples_but_failed_ones_do(open_study):
    study = open_study()
    study.tell(study.ask(), [1.0, 1.0, 1.0])
    studies.fail(study, study.ask(), "diverged")
    study.ask()
    studies.put_back_running(study)
    assert studies.remaining(study, 10) == 8
    assert studies.remaining(study, 1) == 0


@pytest.mark.parametrize(
    "result",
    [None, {}, {"MAE": 1.0, "RMSE": 2.0}, {"MAE": 1.0, "RMSE": float("nan"), "MAPE": 3.0}],
)
def test_missing_or_non_finite_objectives_are_not_usable(result):
    assert studies.usable_objectives(result, ["MAE", "RMSE", "MAPE"]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-samples", "0"], "--num-samples 0: give at least 1"),
        (["--strategy", "best"], "--strategy best: give weighted, or min_ with an objective"),
        (["--train-ratio", "1"], "--train-ratio 1: give a number less than 1"),
        (
            ["--start", "2020-02-01", "--end", "2020-01-01"],
            "--start 2020-02-01 is not before --end 2020-01-01",
        ),
        (["--weights", "1", "1", "1"], "needs --strategy weighted"),
        (
            ["--validation-folds", "2", "--objectives-on", "test"],
            "--validation-folds 2 needs --objectives-on validation",
        ),
        (
            ["--warm-start", "here", "--output-dir", "there/../here"],
            "--warm-start here is also --output-dir; choose another --output-dir, or continue that job with --resume",
        ),
        (["--nonsense"], "unrecognized option --nonsense"),
    ],
)
def test_bad_usage_names_the_option_and_the_value(arguments, message, capsys):
    assert run(main, arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def run_command(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "snapshot", "--feature", "Price"], "Price"),
        (
            ["--source", "snapshot", "--start", "2019-11-01"],
            "77 rows are too few for windows of 120: 195 rows are needed",
        ),
        (
            ["--source", "snapshot", "--validation-folds", "7"],
            "--validation-folds 7: the first fold has 0 rows to train on, too few for windows of 120: 140 rows",
        ),
        (["--source", "no/such.csv"], "no/such.csv"),
        (["--source", "snapshot", "--symbol", "NOSUCH"], "NOSUCH"),
    ],
)
def test_a_failed_job_says_one_line_exits_with_one_and_starts_nothing(tmp_path, arguments, message, capsys):
    assert run(main, ["--output-dir", str(tmp_path / "out"), *arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_output_directory_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "out").write_text("a file")
    done = run_command("tune_jobs.pareto", "--source", "snapshot", "--output-dir", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["tune_jobs.pareto", "forecast", "forecast train", "forecast infer"])
def test_help_needs_neither_torch_nor_ray(command):
    module, *arguments = command.split()
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['x', *{arguments!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=False)\n"
        "except SystemExit as exit:\n"
        "    assert exit.code == 0, exit.code\n"
        "print({'torch', 'ray', 'optuna', 'pandas'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr


def test_forecast_imports_no_ray_optuna_or_web_framework():
    code = (
        "import pkgutil, importlib, sys, forecast\n"
        "names = [m.name for m in pkgutil.iter_modules(forecast.__path__) if m.name != '__main__']\n"
        "[importlib.import_module(f'forecast.{name}') for name in names]\n"
        "print(sorted({'ray', 'optuna', 'fastapi', 'starlette', 'tune_jobs', 'serve_app'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_options_have_one_meaning_in_every_command():
    tune, train = TuneOptions.model_fields, __import__("forecast.config").config.TrainConfig.model_fields
    shared = set(tune) & set(train)
    assert {"symbol", "feature", "source", "seed", "target"} <= shared
    assert all(tune[name].description == train[name].description for name in shared)


def test_progress_counts_ends_and_keeps_the_best_of_each_objective(monkeypatch):
    monkeypatch.setattr("tune_jobs.progress.PLAIN_LINE_EVERY", 0)
    console = Console(file=io.StringIO(), width=200)
    with SearchProgress(console, 4, PERSISTENCE, at_a_time=lambda: 2, quiet=False) as progress:
        progress.finished(Finished(0, {"MAE": 9.0, "RMSE": 21.0, "MAPE": 1.9}, seconds=2, work=1))
        progress.finished(Finished(1, None, reason="it [diverged]"))
        progress.finished(Finished(2, {"MAE": 8.0, "RMSE": 22.0, "MAPE": 1.8}, seconds=3, work=3))
        progress.tick()
    assert (progress.done, progress.failed, progress.seconds) == (2, 1, 5)
    printed = console.file.getvalue().splitlines()
    assert printed[0] == "trial 1 failed: it [diverged]"
    assert printed[1].startswith(
        "2/4 done, 1 failed; best (persistence): MAE 8 (10)  RMSE 21 (20)  MAPE 1.8 (2); "
    )
    assert printed[1].endswith(" left")


def test_the_time_left_follows_the_work_of_trials_not_their_number():
    def left(work):
        console = Console(file=io.StringIO(), width=200)
        with SearchProgress(console, 101, PERSISTENCE, at_a_time=lambda: 2, quiet=True) as progress:
            progress.finished(Finished(0, {"MAE": 9.0}, seconds=10 * work, work=work))
            return progress._seconds_left()

    # A cheap first trial says nothing of the others', and neither does one that went through all comparisons.
    assert left(0.1) == pytest.approx(left(EXPECTED_WORK), rel=0.2)
    assert left(EXPECTED_WORK) == pytest.approx(100 * 10 * EXPECTED_WORK / 2)
    assert left(LAST_RUNG) < 5 * left(EXPECTED_WORK)


def test_quiet_progress_says_nothing(monkeypatch):
    monkeypatch.setattr("tune_jobs.progress.PLAIN_LINE_EVERY", 0)
    console = Console(file=io.StringIO(), width=200)
    with SearchProgress(console, 4, PERSISTENCE, at_a_time=lambda: 2, quiet=True) as progress:
        progress.finished(Finished(1, None, reason="diverged"))
        progress.tick()
    assert console.file.getvalue() == ""


@pytest.mark.parametrize("part", ["validation", "test"])
def test_the_front_table_fits_80_columns_with_persistence_in_its_last_row(tiny_result, part):
    params = {"sequence_length": 20, "hidden_size": 8, "num_layers": 1, "learning_rate": 1e-3}
    found = replace(point(tiny_result, 12345, 17_792.3, 20_885.9, 2.345), params=params)
    shown = ScoredPoint(**vars(found), test=tiny_result.test, same_as_pick=True)
    other = replace(shown, number=54321)
    to_beat = {"validation": tiny_result.validation, "test": tiny_result.test}[part].persistence
    console = Console(file=io.StringIO(), width=80)
    console.print(front_table([shown, other], shown, to_beat, part, 80))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert any("12345 *" in line for line in lines)
    assert any("54321 ~" in line for line in lines)
    assert f"{'selected ' * 3}" in " ".join(console.file.getvalue().split())
    assert lines[-1].split()[0] == "persistence"
    assert f"{tiny_result.test.persistence['MAE']:,.6g}" in lines[-1]
    wide = Console(file=io.StringIO(), width=120)
    wide.print(front_table([shown], shown, to_beat, part, 120))
    assert "20, 8 x 1, 1.0e-03" in wide.file.getvalue()


@pytest.mark.parametrize(("objectives", "test_columns"), [(3, 4), (4, 1)])
def test_the_front_table_of_a_panel_shows_whole_ratios_without_a_unit_and_the_skill(
    tiny_result, objectives, test_columns
):
    names = ("MAE", "RMSE", "MAPE", "CRPS")[:objectives]
    ratios = dict(zip(names, (0.998123, 0.999987, 1.000012, 0.912345), strict=False))
    test = replace(
        tiny_result.test, model=ratios, persistence=dict.fromkeys(names, 1.0), skill={"MAE": 0.00188}
    )
    params = {"sequence_length": 20, "hidden_size": 256, "num_layers": 2, "learning_rate": 1e-3}
    found = ScoredPoint(
        12345, ratios, params, tiny_result.checkpoint, Path("trial.pt"), test, same_as_pick=True
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(front_table([found], found, test.persistence, "validation", 80, relative=True))
    printed = console.file.getvalue()
    assert "…" not in printed
    assert "%" not in next(line for line in printed.splitlines() if "MAPE" in line)
    (row,) = (line for line in printed.splitlines() if "12345 *" in line)
    assert row.split()[2:5] == ["0.9981", "1.0000", "1.0000"]
    assert row.split()[-1] == "+0.19%"
    assert len(row.split()) == 2 + objectives + test_columns


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (1234.5678, {}, "1,234.57"),
        (1234567.8, {}, "1,234,568"),
        (999999.7, {}, "1,000,000"),
        (1234.5678, {"digits": 5}, "1,234.6"),
        (0.998123, {"relative": True}, "0.9981"),
        (1, {"relative": True}, "1.0000"),
    ],
)
def test_a_score_has_six_digits_without_an_exponent_and_a_ratio_four_decimals(value, options, text):
    assert value_text(value, **options) == text


@pytest.mark.parametrize(
    "given", [["mae,rmse,mape,crps"], ["mae", "rmse", "mape", "crps"], ["MAE,RMSE,MAPE,CRPS"]]
)
def test_objectives_may_be_separated_by_commas_or_spaces(given):
    options = TuneOptions(objectives=given, strategy="min_CRPS")
    assert options.objective_names == ["MAE", "RMSE", "MAPE", "CRPS"]
    assert options.strategy == "min_crps"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--strategy min_crps", "--strategy min_crps needs crps among --objectives mae,rmse,mape"),
        ("--objectives mae,mae", "name each objective once"),
        ("--strategy min_mea", "there is no objective 'mea'; choose from: mae, rmse, mape, crps"),
        (
            "--objectives mae,nrmse --strategy min_mae",
            "there is no objective 'nrmse'; choose from: mae, rmse, mape, crps",
        ),
        ("--strategy weighted --weights 1 2", "2 weights for 3 objectives (mae, rmse, mape)"),
    ],
)
def test_objectives_strategies_and_weights_that_do_not_fit_are_refused(options, message, capsys):
    assert run(main, options.split()) == 2
    assert message in capsys.readouterr().err


def test_one_standard_error_takes_the_smallest_model_that_noise_cannot_tell_from_the_best(
    snapshot, tiny_result
):
    from forecast import train

    def trained(number, hidden, bias):
        config = tiny_result.checkpoint.config.model_copy(update={"hidden_size": hidden})
        checkpoint = train(snapshot, TrainConfig(**config.model_dump())).checkpoint
        checkpoint.model_state["regressor.bias"] += bias
        objectives = evaluate_part(checkpoint, prepared, "validation").model
        chosen = {name: objectives[name] for name in ("MAE", "RMSE", "MAPE", "CRPS")}
        return FrontPoint(number, chosen, {}, checkpoint, Path("x.pt"))

    prepared = prepare(snapshot, tiny_result.checkpoint.config)
    large, small, smallest_and_bad = trained(0, 16, 0.0), trained(1, 8, 0.0), trained(2, 4, 1.0)
    front = [large, small, smallest_and_bad]
    for strategy in ("min_crps", "weighted"):
        preference = Preference(strategy, tiny_result.validation.persistence)
        costs = {
            point.number: sample_cost(
                point.objectives,
                row_losses(point.checkpoint, prepared, "validation", list(point.objectives)),
                preference,
            )
            for point in front
        }
        near = pick_within_one_se(front, preference, costs)
        assert near.number == 1
        assert preference.cost(near.objectives) >= preference.cost(pick(front, preference).objectives)


def test_the_error_of_a_difference_is_that_of_blocks_of_rows():
    noise = np.random.default_rng(1).normal(size=4096)
    # Runs of 16 equal losses, which is the block length: their mean is that of 256 independent ones.
    losses = np.repeat(noise[:256], 16)
    preference = Preference("min_mae", {})
    clustered, independent = (
        sample_cost({"MAE": 0.0}, {"MAE": values}, preference) for values in (losses, noise)
    )
    assert clustered.resampled.mean() == pytest.approx(losses.mean(), abs=0.01)
    assert np.std(independent.resampled) == pytest.approx(1 / 64, rel=0.1)
    # A block at a random place covers parts of two runs, which loses a third of the variance.
    assert np.std(clustered.resampled) == pytest.approx(np.sqrt(2 / 3) / 16, rel=0.15)
    level = SampledCost(0.0, np.zeros(BOOTSTRAPS))
    assert SampledCost(0.9 / 64, independent.resampled).is_near(level)
    assert not SampledCost(-1.2 / 64, independent.resampled).is_near(level)


def test_the_best_of_many_noisy_trials_is_luck_and_a_trial_that_knows_more_is_skill():
    generator = np.random.default_rng(0)
    persistence = {"MAE": np.abs(generator.normal(size=500)), "RMSE": generator.normal(size=500) ** 2}
    noisy = [
        {name: losses + 0.1 * generator.normal(size=500) for name, losses in persistence.items()}
        for _ in range(50)
    ]
    better = {name: 0.9 * losses for name, losses in noisy[0].items()}
    for strategy in ("min_mae", "min_rmse", "weighted"):
        preference = Preference(strategy, {"MAE": 1.0, "RMSE": 1.0})
        assert p_value_of_best(noisy, persistence, preference) > 0.05
        assert p_value_of_best([*noisy, better], persistence, preference) < 0.05


def test_the_weighted_sum_of_losses_weighs_squared_errors_by_persistences_mean_squared_error(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "tune_jobs.luck.superior_predictive_ability", lambda *losses: seen.append(losses) or 1.0
    )
    persistence = {"MAE": np.array([1.0, 3.0]), "RMSE": np.array([100.0, 300.0])}
    trial = {"MAE": np.array([2.0, 2.0]), "RMSE": np.array([100.0, 0.0])}
    p_value_of_best([trial], persistence, Preference("weighted", {"MAE": 2.0, "RMSE": 14.1}))
    ((trials, benchmark),) = seen
    np.testing.assert_allclose(trials, [[1.5, 1.0]])
    np.testing.assert_allclose(benchmark, [1.0, 3.0])


def test_the_lines_under_the_table_call_luck_luck():
    luck = Luck(frozenset({1}), True, "MAPE", 64, 0.43)
    first, second = luck_lines(luck, TuneOptions())
    assert first == (
        "The best of 64 trials against persistence: p = 0.43 (Hansen's SPA test on the validation rows, MAPE): "
        "consistent with luck"
    )
    assert second == "Noise cannot tell the pick from persistence on the rows it was chosen on"
    (line,) = luck_lines(
        replace(luck, p_value=0.012, trials=1, pick_same_as_persistence=False), TuneOptions()
    )
    assert line.startswith("The only trial against persistence: p = 0.012 (")
    assert line.endswith("): skill")


@pytest.mark.parametrize("part", ["validation", "test"])
def test_persistence_costs_on_its_rows_what_the_metrics_say(snapshot, tiny_result, part):
    prepared = prepare(snapshot, tiny_result.checkpoint.config)
    losses = persistence_losses(prepared, part, ["MAE", "CRPS"])
    persistence = persistence_metrics(prepared, part)
    assert {name: values.mean() for name, values in losses.items()} == pytest.approx(
        {name: persistence[name] for name in losses}
    )


@pytest.fixture(scope="module")
def two_folds(snapshot):
    config = TrainConfig(
        source="snapshot",
        sequence_length=20,
        hidden_size=4,
        num_layers=1,
        max_epochs=4,
        batch_size=128,
        patience=2,
    )
    earlier = prepare_earlier_folds(snapshot, 2, config, 20)
    return [*earlier, prepare(snapshot, config).without_test()], config


def test_an_earlier_fold_ends_one_validation_length_before_the_next_and_is_fitted_on_its_own_rows(
    two_folds, snapshot
):
    (first, last), config = two_folds
    assert len(first.normalized) == first.split.validation_end == last.split.train_end
    length = last.split.validation_end - last.split.train_end
    assert first.split.train_end == last.split.train_end - length
    alone = snapshot.part(slice(0, last.split.train_end))
    again = prepare(alone, config, first.split)
    np.testing.assert_array_equal(again.normalized, first.normalized)
    later = snapshot.matrix.copy()
    later[first.split.train_end :] *= 2
    assert first.normalization == prepare(replace(snapshot, matrix=later), config, first.split).normalization


def test_objectives_over_two_folds_are_the_means_of_two_trainers_trained_alone(two_folds):
    folds, config = two_folds
    together = FoldTrainers([Trainer(fold, config) for fold in folds])
    alone = [Trainer(fold, config) for fold in folds]
    for trainer in alone:
        trainer.advance()
    together.advance(1)
    continued = FoldTrainers([Trainer(fold, config) for fold in folds])
    continued.load_state_dict(together.state_dict())
    for trainers in (together, continued):
        while not trainers.finished:
            trainers.advance(next_rung(trainers.position))
        scores = [trainer.evaluate().model for trainer in alone]
        assert trainers.evaluate("validation") == pytest.approx(
            {name: (scores[0][name] + scores[1][name]) / 2 for name in scores[0]}, rel=1e-12
        )
        assert trainers.best_loss == pytest.approx((alone[0].best_loss + alone[1].best_loss) / 2, rel=1e-12)
        assert trainers.last.best_state().keys() == alone[1].best_state().keys()
        for name, weights in trainers.last.best_state().items():
            assert weights.equal(alone[1].best_state()[name])


def test_a_study_lies_in_a_directory_with_a_percent_sign(tmp_path):
    from tune_jobs import study as studies

    path = tmp_path / "%5EGSPC" / STUDY_FILE
    path.parent.mkdir()
    studies.close_storage(studies.open_storage(SqliteFile(path)), SqliteFile(path))
    assert path.is_file()
