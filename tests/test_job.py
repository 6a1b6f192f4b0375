"""Whole tuning jobs on a real Ray cluster, and jobs that are killed."""

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import ray
from optuna.trial import TrialState
from rich.console import Console
from running_job import start_job, study_of, wait_for_end, wait_for_finished, wait_until, write_summary

from forecast import Predictor, evaluate, load_checkpoint
from forecast.__main__ import main as command
from forecast.cli.command import run
from forecast.errors import DataError, StudyError, UsageError
from forecast.model.training import Trainer
from forecast.model.windows import prepare
from tune_jobs import databases
from tune_jobs import job as jobs
from tune_jobs import study as studies
from tune_jobs.cluster import Connected
from tune_jobs.databases import SqliteFile, study_errors
from tune_jobs.folds import FoldTrainers, mean_metrics, prepare_earlier_folds
from tune_jobs.options import TuneOptions
from tune_jobs.placement import Placement
from tune_jobs.prepare import Job, persistence_metrics
from tune_jobs.search import search_and_pick
from tune_jobs.searcher import Finished, SearchInput, trial_checkpoint_path
from tune_jobs.selection import pareto_front
from tune_jobs.space import SPACES, SearchSpace
from tune_jobs.states import StateStore
from tune_jobs.stopping import Stop
from tune_jobs.trial import LAST_RUNG, LEAST_SHARE, TrainingTrial, most_epochs, next_rung
from tune_jobs.tuner import run_search

pytestmark = pytest.mark.slow

TINY_SPACE = SearchSpace(
    sequence_length=(20, 40, 10),
    hidden_size=(8, 16),
    num_layers=(1, 2),
    batch_size=(128,),
    max_epochs=(6, 12, 6),
)


@pytest.fixture(autouse=True)
def _tiny_space(monkeypatch):
    monkeypatch.setitem(SPACES, "small", TINY_SPACE)


def options(directory, **changes):
    settings = {
        "source": "snapshot",
        "space": "small",
        "num_samples": 6,
        "quiet": True,
        "report": False,
        "output_dir": directory,
    }
    return TuneOptions(**(settings | changes))


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory):
    directory = tmp_path_factory.mktemp("job")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPACES, "small", TINY_SPACE)
        outcome = jobs.run_job(options(directory, report=True))
    return directory, outcome


def test_a_job_leaves_its_artifacts_and_nothing_else(finished):
    directory, outcome = finished
    names = {path.name for path in directory.iterdir() if not path.name.startswith(".lock")}
    assert names == {
        "optuna_study.db",
        "pareto_trials.csv",
        "checkpoints",
        "best_pareto_lstm.pt",
        "scored_pick.pt",
        "summary.json",
        "report.html",
    }
    assert (
        f"the pick by min_mape: trial {outcome.summary['pick']['trial_number']}"
        in (directory / "report.html").read_text()
    )


def test_every_trial_is_complete_in_the_study_with_its_checkpoint(finished):
    directory, _ = finished
    study = study_of(directory)
    assert study.metric_names == ["MAE", "RMSE", "MAPE"]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
    for trial in study.trials:
        checkpoint = load_checkpoint(directory / "checkpoints" / f"trial_{trial.number:05d}.pt")
        assert checkpoint.trial_number == trial.number
        assert checkpoint.trial_params == trial.params
        assert [checkpoint.metrics_validation[name] for name in POINT] == trial.values
        assert checkpoint.provenance["source"] == "snapshot"


def test_only_the_front_is_scored_on_test_and_the_pick_is_on_it(finished):
    directory, outcome = finished
    front = {trial.number for trial in study_of(directory).best_trials}
    scored = {
        number
        for number in range(6)
        if load_checkpoint(directory / "checkpoints" / f"trial_{number:05d}.pt").metrics_test
    }
    assert scored == front
    picked = load_checkpoint(directory / "scored_pick.pt")
    assert picked.trial_number == outcome.summary["pick"]["trial_number"]
    assert picked.trial_number == min(study_of(directory).best_trials, key=lambda t: t.values[2]).number
    assert picked.metrics_test == outcome.summary["pick"]["test"]


def test_a_checkpoint_of_another_study_is_left_out_of_the_front(finished, tmp_path):
    study, copied = study_of(finished[0]), tmp_path / "checkpoints"
    shutil.copytree(finished[0] / "checkpoints", copied)
    front, problems = pareto_front(study, copied, 1)
    assert ({point.number for point in front}, problems) == ({each.number for each in study.best_trials}, [])
    wrong = front[0].number
    shutil.copy(trial_checkpoint_path(copied, (wrong + 1) % 6), trial_checkpoint_path(copied, wrong))
    others, problems = pareto_front(study, copied, 1)
    assert [point.number for point in others] == [point.number for point in front[1:]]
    assert [f"trial {wrong} " in line and "is of another study" in line for line in problems] == [True]


def test_the_pick_is_trained_again_on_later_rows_for_service_and_keeps_the_scores_of_the_scored_model(
    finished, snapshot, tmp_path
):
    directory, outcome = finished
    scored, served = (load_checkpoint(directory / name) for name in ("scored_pick.pt", "best_pareto_lstm.pt"))
    trial = load_checkpoint(directory / "checkpoints" / f"trial_{scored.trial_number:05d}.pt")
    assert equal_states(scored.model_state, trial.model_state)
    assert [member.config.seed for member in scored.members] == [42, 43]
    assert [member.config.seed for member in served.members] == [42, 43]
    for field in (
        "metrics_test",
        "metrics_validation",
        "persistence",
        "intervals",
        "trial_number",
        "search_p_value",
    ):
        assert getattr(served, field) == getattr(scored, field)
    assert served.scored_model == {
        "split": scored.split,
        "trained_until": scored.trained_until,
        "validated_until": scored.validated_until,
    }
    rows = len(snapshot)
    assert served.split == {"train_end": int(rows * 0.85), "validation_end": rows, "rows": rows}
    assert served.trained_until == scored.validated_until == str(snapshot.dates[int(rows * 0.85) - 1])
    assert served.validated_until == str(snapshot.dates[-1])
    assert evaluate(scored, snapshot).model == outcome.summary["pick"]["test"]
    with pytest.raises(DataError, match=r"use scored_pick\.pt, or a series that ends later"):
        evaluate(served, snapshot)
    # Training it again gives the same model.
    shutil.copytree(directory, tmp_path / "job")
    jobs.run_job(options(tmp_path / "job", resume=True))
    again = load_checkpoint(tmp_path / "job" / "best_pareto_lstm.pt")
    for member, same in zip(served.members, again.members, strict=True):
        assert equal_states(member.model_state, same.model_state)
    assert np.array_equal(served.calibration_scores, again.calibration_scores)


def test_without_retraining_the_scored_model_is_served(cluster, tmp_path):
    jobs.run_job(options(tmp_path, num_samples=2, retrain=False, members=1))
    scored, served = (load_checkpoint(tmp_path / name) for name in ("scored_pick.pt", "best_pareto_lstm.pt"))
    assert served.scored_model is None
    assert len(served.members) == 1
    assert served.split == scored.split
    assert equal_states(served.model_state, scored.model_state)


def test_a_job_says_what_of_its_pick_is_luck(finished):
    directory, outcome = finished
    summary = outcome.summary
    luck = summary["luck"]
    assert (luck["test"], luck["metric"], luck["trials"]) == ("SPA", "MAPE", 6)
    assert luck["skill"] == (luck["p_value"] < 0.05)
    assert isinstance(summary["pick_same_as_persistence"], bool)
    same = {point["trial_number"]: point["same_as_pick"] for point in summary["front"]}
    assert same[summary["pick"]["trial_number"]]
    for number in same:
        checkpoint = load_checkpoint(directory / "checkpoints" / f"trial_{number:05d}.pt")
        assert checkpoint.search_p_value == luck["p_value"]
    assert load_checkpoint(directory / "best_pareto_lstm.pt").search_p_value == luck["p_value"]


def test_the_csv_and_the_summary_show_the_front_beside_persistence(finished, snapshot):
    directory, _ = finished
    summary = json.loads((directory / "summary.json").read_text())
    with (directory / "pareto_trials.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["trial_number"]) for row in rows] == [point["trial_number"] for point in summary["front"]]
    for row, point in zip(rows, summary["front"], strict=True):
        assert float(row["MAE"]) == point["objectives"]["MAE"] == point["validation"]["MAE"]
        assert float(row["test_RMSE"]) == point["test"]["RMSE"]
        assert float(row["persistence_test_MAE"]) == summary["persistence"]["test"]["MAE"]
    test_rows = snapshot.values[int(len(snapshot) * 0.85) - 1 :]
    assert summary["persistence"]["test"]["MAE"] == pytest.approx(np.mean(np.abs(np.diff(test_rows))))
    assert summary["trials"] == {"asked": 6, "COMPLETE": 6}
    assert 0 < summary["search"]["training_seconds"] < 2 * summary["search"]["wall_seconds"]
    assert summary["data"]["sha256"] == snapshot.provenance.sha256


def test_the_pick_forecasts_what_the_command_line_prints(finished, snapshot):
    directory, _ = finished
    pick = directory / "best_pareto_lstm.pt"
    done = subprocess.run(
        [sys.executable, "-m", "forecast", "infer", "--checkpoint", str(pick), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["last_date"] == str(snapshot.dates[-1])
    assert answer["prediction"] == pytest.approx(Predictor(pick).predict_next(answer["values"]), rel=1e-6)


def test_a_finished_study_is_refused_without_resume_and_resumed_with_it(finished):
    directory, outcome = finished
    with pytest.raises(StudyError, match="already has 6 trials; continue the study with `resume`"):
        jobs.run_job(options(directory))
    again = jobs.run_job(options(directory, resume=True))
    assert again.summary["trials"] == outcome.summary["trials"]
    assert again.summary["search"]["trials"] == 0


def test_a_new_study_does_not_write_over_the_checkpoints_of_another(finished, tmp_path):
    directory = tmp_path / "job"
    shutil.copytree(finished[0], directory)
    (directory / "checkpoints" / "trial_00000.pt").unlink()  # as after an interruption
    before = {path: path.read_bytes() for path in (directory / "checkpoints").iterdir()}
    with pytest.raises(StudyError, match=r"models of trials that 'other' does not have"):
        jobs.run_job(options(directory, study_name="other"))
    assert {path: path.read_bytes() for path in (directory / "checkpoints").iterdir()} == before


def test_crps_can_be_an_objective_and_its_trials_can_be_trained_again(cluster, tmp_path):
    outcome = jobs.run_job(
        options(
            tmp_path / "job",
            num_samples=4,
            likelihood="student_t",
            objectives="mae,rmse,mape,crps",
            strategy="min_crps",
            one_se=True,
        )
    )
    study = optuna.load_study(
        study_name="stock_lstm_optuna", storage=f"sqlite:///{tmp_path / 'job' / 'optuna_study.db'}"
    )
    assert study.metric_names == outcome.summary["objectives"] == ["MAE", "RMSE", "MAPE", "CRPS"]
    served = tmp_path / "job" / "best_pareto_lstm.pt"
    picked = tmp_path / "job" / "scored_pick.pt"
    checkpoint = load_checkpoint(picked)
    assert outcome.summary["pick"]["objectives"] == dict(
        zip(study.metric_names, study.trials[checkpoint.trial_number].values, strict=True)
    )
    assert checkpoint.configurations_tried == 4
    assert outcome.summary["pick"]["intervals_test"] == checkpoint.intervals["test"]

    again = tmp_path / "again.pt"
    assert command(["train", "--from-trial", str(picked), "--quiet", "--checkpoint", str(again)]) == 0
    assert load_checkpoint(again).metrics_validation == checkpoint.metrics_validation
    assert load_checkpoint(again).metrics_test == checkpoint.metrics_test
    assert run(command, ["train", "--from-trial", str(served), "--checkpoint", str(again)]) == 2
    with pytest.raises(StudyError, match=r"other objectives .* use the same `objectives`"):
        jobs.run_job(options(tmp_path / "job", resume=True, likelihood="student_t"))


def test_objectives_of_a_job_with_two_folds_are_means_and_its_pick_is_the_last_folds_model(
    cluster, tmp_path, snapshot
):
    outcome = jobs.run_job(options(tmp_path, num_samples=3, validation_folds=2, members=1, report=True))
    point, persistence = outcome.summary["pick"], outcome.summary["persistence"]["validation"]
    checkpoint = load_checkpoint(tmp_path / "scored_pick.pt")
    last = prepare(snapshot, checkpoint.config)
    folds = [*prepare_earlier_folds(snapshot, 2, checkpoint.config, 40), last]
    again = FoldTrainers([Trainer(fold, checkpoint.config) for fold in folds])
    reported = study_of(tmp_path).trials[point["trial_number"]].user_attrs
    asked = options(tmp_path)
    epochs = most_epochs(asked, TINY_SPACE.of(asked), point["params"], last) / LAST_RUNG  # of a unit of work
    while again.position < reported["epoch"]:
        rung = next_rung(round(again.position / epochs, 6)) * epochs
        again.advance(max(rung, again.position + LEAST_SHARE))
    assert point["objectives"] == pytest.approx(
        {name: again.evaluate("validation")[name] for name in POINT}, rel=1e-6
    )
    assert checkpoint.metrics_validation == pytest.approx(again.last.evaluate().model, rel=1e-6)
    assert checkpoint.metrics_validation["MAE"] != pytest.approx(point["objectives"]["MAE"], rel=1e-3)
    assert persistence == pytest.approx(
        mean_metrics([persistence_metrics(fold, "validation") for fold in folds])
    )
    assert outcome.summary["validation_folds"] == 2
    assert "means over 2 folds" in (tmp_path / "report.html").read_text()


def test_a_warm_job_on_another_split_tries_the_earlier_pick_first_and_leaves_the_earlier_job_as_it_was(
    cluster, finished, tmp_path
):
    earlier, outcome = finished
    before = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    front = outcome.summary["front"]
    picked = outcome.summary["pick"]["trial_number"]
    settings = {"warm_start": earlier, "train_ratio": 0.8, "num_samples": len(front) + 1, "members": 1}
    job = tmp_path / "job"
    found = jobs.run_job(options(job, report=True, **settings)).summary
    assert {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()} == before
    trials = study_of(job).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * (len(front) + 1)
    warm = found["warm_start"]
    assert (warm["directory"], warm["configurations"], warm["skipped"]) == (str(earlier), len(front), [])
    numbers = {each["trial_number"]: each["earlier_trial"] for each in warm["trials"]}
    assert list(numbers) == list(range(len(front)))
    assert numbers[0] == picked
    for number, same in numbers.items():
        assert trials[number].params == study_of(earlier).trials[same].params
    assert trials[0].values != study_of(earlier).trials[picked].values
    rows = "{first_date} to {last_date}".format_map(outcome.summary["data"])
    assert f"Warm start from {earlier} (rows {rows})" in (job / "report.html").read_text()
    # Resumed with more samples, nothing of the earlier job runs twice; without the option, its origin is known.
    settings["num_samples"] += 1
    again = jobs.run_job(options(job, resume=True, **settings)).summary
    assert again["trials"]["COMPLETE"] == settings["num_samples"]
    assert again["warm_start"] == warm
    del settings["warm_start"]
    assert jobs.run_job(options(job, resume=True, **settings)).summary["warm_start"] == warm


def test_configurations_that_the_space_lacks_are_skipped_with_one_line_and_others_are_run(
    cluster, finished, tmp_path, capsys
):
    earlier = json.loads((finished[0] / "summary.json").read_text())
    for number, size in enumerate((256, 256)):
        point = earlier["front"][0]
        params = point["params"] | {"hidden_size": size}
        earlier["front"].append(point | {"trial_number": 100 + number, "params": params})
    (tmp_path / "summary.json").write_text(json.dumps(earlier))
    fitting = len(earlier["front"]) - 2
    settings = {"warm_start": tmp_path, "num_samples": fitting, "members": 1, "quiet": False}
    found = jobs.run_job(options(tmp_path / "job", **settings)).summary
    assert found["trials"] == {"asked": fitting, "COMPLETE": fitting}
    assert len(found["warm_start"]["trials"]) == fitting
    printed = capsys.readouterr()
    assert f"configurations tried first: {fitting} of {fitting + 2}\n" in printed.out
    assert (
        f"warning: 2 of the {fitting + 2} configurations of {tmp_path} are skipped, because this job's search space "
        "lacks a value of theirs: hidden_size 256 (2 times)\n"
    ) in printed.err


def equal_states(first, second):
    return all(np.array_equal(value, second[name]) for name, value in first.items())


POINT = ["MAE", "RMSE", "MAPE"]


def small_search(directory, prepared, space=TINY_SPACE, samples=4, on_finished=None, **more):
    experiment = options(directory)
    database = SqliteFile(directory / "optuna_study.db")
    storage = studies.open_storage(database)
    study = studies.open_study(storage, "s", database=database, resume=True, objectives=POINT, basis={})
    seen: list[Finished] = []
    run_search(
        SearchInput(prepared, experiment, {}, space, POINT),
        study,
        storage,
        samples=samples,
        placement=Placement(max_concurrent=2, gpus_per_trial=0),
        checkpoint_dir=directory / "checkpoints",
        states=StateStore(str(directory / "tune"), "job"),
        on_finished=on_finished or seen.append,
        **({"stop": Stop()} | more),
    )
    trials = study.trials
    studies.close_storage(storage, database)
    return trials, seen


def study_in(directory):
    """The study of ``small_search``."""
    return optuna.load_study(study_name="s", storage=f"sqlite:///{directory / 'optuna_study.db'}")


def test_replacing_every_test_row_by_nan_changes_nothing_the_search_does_or_picks(
    cluster, tmp_path, snapshot
):
    results = []
    for name in ("as_they_are", "nan"):
        directory = tmp_path / name
        settings = options(directory, max_concurrent=1, num_samples=5)
        prepared = prepare(snapshot, settings)
        if name == "nan":
            normalized = prepared.normalized.copy()
            normalized[prepared.split.validation_end :] = np.nan
            prepared = replace(prepared, normalized=normalized)
        directory.mkdir()
        persistence = {"validation": persistence_metrics(prepared, "validation")}
        quiet = Console(quiet=True)
        found = search_and_pick(
            Job(settings, snapshot, prepared, "", persistence, quiet, quiet),
            lambda: Connected(may_grow=False),
        )
        trials = [(trial.params, trial.values, trial.state) for trial in study_of(directory).trials]
        results.append((trials, found.picked.number, [point.number for point in found.front]))
    assert results[0] == results[1]


def test_trials_that_diverge_are_failures_with_their_reason_and_never_on_the_front(
    cluster, tmp_path, snapshot
):
    prepared = prepare(snapshot, options(tmp_path))
    normalized = prepared.normalized.copy()
    normalized[prepared.split.train_end + 5] = np.nan
    trials, seen = small_search(tmp_path, replace(prepared, normalized=normalized), samples=3)
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 3
    assert all("validation loss is nan" in trial.user_attrs["reason"] for trial in trials)
    assert [end.objectives for end in seen] == [None] * 3
    assert not (tmp_path / "checkpoints").exists()


def test_a_trial_that_raises_is_a_failure_and_the_others_finish(cluster, tmp_path, snapshot):
    # One of the two hidden sizes is larger than a configuration allows.
    space = replace(TINY_SPACE, hidden_size=(8, 100_000))
    trials, _ = small_search(tmp_path, prepare(snapshot, options(tmp_path)), space, samples=6)
    states = {trial.params["hidden_size"]: trial.state for trial in trials}
    assert states == {8: TrialState.COMPLETE, 100_000: TrialState.FAIL}
    assert len(trials) == 6
    failed = next(trial for trial in trials if trial.state == TrialState.FAIL)
    assert "4096" in failed.user_attrs["reason"]


class DyingTrial(TrainingTrial):
    """Its process dies at once if the hidden size is 16, and once, in the second step, if it is 8."""

    def step(self):
        if self._params["hidden_size"] == 16:
            os._exit(1)
        mark = Path(self._experiment.output_dir) / f"died_{self.trial_id}"
        if mark.exists() and not mark.read_text():
            mark.write_text(f"went on from epoch {self._current.position}")
        if self.iteration == 1 and not mark.exists():
            mark.touch()
            os._exit(1)
        return super().step()


@pytest.fixture
def _classes_of_this_file_travel():
    # Workers cannot import this file, so its classes are pickled with their code.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.usefixtures("_classes_of_this_file_travel")
def test_a_trial_whose_process_dies_goes_on_from_its_rung_and_fails_when_it_dies_again_and_again(
    cluster, tmp_path, snapshot
):
    prepared = prepare(snapshot, options(tmp_path))
    trials, _ = small_search(tmp_path, prepared, samples=4, trial_class=DyingTrial)
    states = {(trial.params["hidden_size"], trial.state) for trial in trials}
    assert states == {(8, TrialState.COMPLETE), (16, TrialState.FAIL)}
    assert all("worker died" in t.user_attrs["reason"] for t in trials if t.state == TrialState.FAIL)
    died = list(tmp_path.glob("died_*"))
    assert died
    assert all(float(mark.read_text().removeprefix("went on from epoch ")) > 0 for mark in died)


class RecordingTrial(TrainingTrial):
    """Records the epoch at which each of its steps starts."""

    def step(self):
        with (Path(self._experiment.output_dir) / f"steps_of_{self._ticket.number}").open("a") as steps:
            steps.write(f"{self._current.position}\n")
        return super().step()


@pytest.mark.usefixtures("_classes_of_this_file_travel")
def test_an_interrupted_trial_goes_on_from_its_last_rung_when_the_job_is_resumed(cluster, tmp_path, snapshot):
    prepared = prepare(snapshot, options(tmp_path))
    stop = Stop()

    def stop_once_a_trial_has_saved_itself():
        if any(studies.STATE in t.user_attrs for t in study_in(tmp_path).get_trials(deepcopy=False)):
            stop.reason = "test"

    small_search(
        tmp_path, prepared, stop=stop, on_event=stop_once_a_trial_has_saved_itself, trial_class=RecordingTrial
    )
    interrupted = study_in(tmp_path).get_trials(states=[TrialState.FAIL])
    saved = {trial.number for trial in interrupted if studies.STATE in trial.user_attrs}
    trials, _ = small_search(tmp_path, prepared, trial_class=RecordingTrial)
    went_on = [trial for trial in trials if trial.user_attrs.get(studies.RERUN_OF) in saved]
    assert len(went_on) == len(saved) >= 1
    for trial in went_on:
        assert trial.state == TrialState.COMPLETE
        assert float((tmp_path / f"steps_of_{trial.number}").read_text().split()[0]) > 0


def test_a_locked_database_ends_the_search_and_resume_loses_no_trial(
    cluster, tmp_path, snapshot, monkeypatch
):
    monkeypatch.setattr(databases, "LOCK_WAIT", 0.5)
    prepared = prepare(snapshot, options(tmp_path))
    other = sqlite3.connect(tmp_path / "optuna_study.db", check_same_thread=False)
    finished = []

    def lock_after_the_first(end):
        finished.append(end.number)
        if len(finished) == 1:
            other.execute("BEGIN IMMEDIATE")

    with (
        pytest.raises(StudyError, match=r"optuna_study.db cannot be used \(database is locked\)"),
        study_errors(SqliteFile(tmp_path / "optuna_study.db")),
    ):
        small_search(tmp_path, prepared, on_finished=lock_after_the_first)
    other.rollback()
    other.close()
    assert study_in(tmp_path).trials[finished[0]].state == TrialState.COMPLETE
    studies.put_back_running(study_in(tmp_path))
    trials, _ = small_search(tmp_path, prepared, samples=3)
    states = [trial.state for trial in trials]
    assert states.count(TrialState.COMPLETE) == 4
    assert TrialState.RUNNING not in states


def test_a_full_disk_ends_the_search_in_its_own_words_and_loses_no_finished_trial(
    cluster, tmp_path, snapshot
):
    prepared = prepare(snapshot, options(tmp_path))
    trials, _ = small_search(tmp_path, prepared, samples=2)
    assert len(trials) == 2
    finished = sorted((tmp_path / "checkpoints").iterdir())
    contents = [path.read_bytes() for path in finished]
    with pytest.MonkeyPatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr("tune_jobs.searcher.save_checkpoint", full)
        with pytest.raises(OSError, match="No space left"):
            small_search(tmp_path, prepared, samples=2)
    assert [path.read_bytes() for path in finished] == contents
    trials, _ = small_search(tmp_path, prepared, samples=1)
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) >= 3


def test_a_time_budget_ends_the_job_and_resume_completes_it(cluster, tmp_path):
    first = jobs.run_job(options(tmp_path, num_samples=400, time_budget=5))
    assert first.interrupted
    states = [trial.state for trial in study_of(tmp_path).trials]
    assert TrialState.RUNNING not in states
    complete = states.count(TrialState.COMPLETE)
    assert complete < 400
    second = jobs.run_job(options(tmp_path, num_samples=complete + 3, resume=True))
    assert not second.interrupted
    assert second.summary["trials"]["COMPLETE"] == complete + 3
    assert second.summary["search"]["trials"] == 3


def test_asking_for_more_than_the_cluster_has_is_refused_at_once(cluster):
    with pytest.raises(UsageError, match="`cpus_per_trial` 64: no node of the cluster has that many CPUs"):
        Placement(cpus_per_trial=64)
    with pytest.raises(UsageError, match="`gpus_per_trial` 3: no node of the cluster can give"):
        Placement(gpus_per_trial=3)


def test_trials_share_a_gpu_where_the_cluster_has_one(cluster, tmp_path):
    # The cluster's one GPU is fake: Ray schedules by it, but torch finds none.
    outcome = jobs.run_job(options(tmp_path, num_samples=2, gpu_from=0))
    assert outcome.summary["trials"]["COMPLETE"] == 2
    assert [trial.user_attrs["gpus"] for trial in study_of(tmp_path).trials] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--storage-path", "/proc/nope", "--storage-path /proc/nope: cannot be written"),
        ("--address", "127.0.0.1:1", "--address 127.0.0.1:1: there is no Ray cluster"),
    ],
)
def test_a_place_that_cannot_be_reached_is_one_clear_line(tmp_path, option, value, message):
    code, errors = wait_for_end(start_job(tmp_path, option, value))
    assert code == 1
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1


def test_a_signal_before_the_first_trial_has_a_process_ends_the_job_and_resume_completes_it(tmp_path):
    process = start_job(tmp_path, "--num-samples", "4")
    wait_until(lambda: (tmp_path / ".tune_state").exists() and study_of(tmp_path).trials, process)
    process.send_signal(signal.SIGTERM)
    code, errors = wait_for_end(process, seconds=60)
    assert code == 130, errors
    assert "stopped by SIGTERM with 0 trials finished" in errors
    assert all(trial.state != TrialState.RUNNING for trial in study_of(tmp_path).trials)
    code, errors = wait_for_end(start_job(tmp_path, "--num-samples", "4", "--resume"))
    assert code == 0, errors
    assert [trial.state for trial in study_of(tmp_path).trials].count(TrialState.COMPLETE) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_ends_the_job_with_everything_finished_kept(tmp_path, number):
    process = start_job(tmp_path, "--num-samples", "100")
    wait_for_finished(tmp_path, 2, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "continue with the same command and --resume" in errors
    states = [trial.state for trial in study_of(tmp_path).trials]
    assert states.count(TrialState.COMPLETE) >= 2
    assert TrialState.RUNNING not in states
    assert (tmp_path / "best_pareto_lstm.pt").exists()


@pytest.mark.parametrize("after", [1, 3, 5])
def test_sigterm_while_ray_starts_is_one_line_and_exit_code_130(tmp_path, after):
    process = start_job(tmp_path, "--num-samples", "100", "--quiet")
    time.sleep(after)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert errors.count("\n") == 1
    assert errors.startswith(("interrupted\n", "stopped by SIGTERM"))


def test_a_home_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null/nothing")
    # Matplotlib, which the notebooks need and `arch` then imports, complains of the home by itself.
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    code, errors = wait_for_end(start_job(tmp_path / "job", "--num-samples", "1", "--quiet"))
    assert (code, errors) == (0, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("place", ["output", "states", "ray"])
def test_a_full_disk_is_one_line_that_names_it_and_resume_continues(tmp_path, monkeypatch, place):
    disk = Path(tempfile.mkdtemp(dir="/tmp"))  # short enough for the sockets of Ray
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine does not let root mount")
    output = disk / "output" if place == "output" else tmp_path / "output"
    full = {"output": output, "states": disk / "states", "ray": disk / "ray"}[place]
    more = ["--quiet", *(["--storage-path", str(full)] if place == "states" else [])]
    try:
        assert wait_for_end(start_job(output, "--num-samples", "2", *more)) == (0, "")
        room = os.statvfs(disk)
        filler = disk / "filler"
        filler.write_bytes(bytes(room.f_bavail * room.f_frsize - 100_000))
        with monkeypatch.context() as patch:
            if place == "ray":
                patch.setenv("RAY_TMPDIR", str(disk))
            code, errors = wait_for_end(start_job(output, "--num-samples", "6", "--resume", *more))
        assert code == 1
        assert errors.count("\n") == 1
        assert errors.startswith(f"error: the disk of {full} is full (")
        assert errors.endswith("continue with --resume\n")
        filler.unlink()
        assert wait_for_end(start_job(output, "--num-samples", "4", "--resume", *more)) == (0, "")
        assert [trial.state for trial in study_of(output).trials].count(TrialState.COMPLETE) == 4
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
        disk.rmdir()


def test_a_killed_driver_is_resumed_to_the_exact_number_of_samples(tmp_path):
    process = start_job(tmp_path, "--num-samples", "6")
    wait_for_finished(tmp_path, 2, process)
    process.kill()
    process.communicate(timeout=60)
    before = {trial.number: trial.values for trial in study_of(tmp_path).trials if trial.values}
    process = start_job(tmp_path, "--num-samples", "6", "--resume")
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    trials = study_of(tmp_path).trials
    states = [trial.state for trial in trials]
    assert states.count(TrialState.COMPLETE) == 6
    assert TrialState.RUNNING not in states
    assert {number: trials[number].values for number in before} == before
    interrupted = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert all(trial.user_attrs["reason"] == "interrupted" for trial in interrupted)


def test_a_warm_job_that_is_killed_is_resumed_to_the_exact_number_with_each_configuration_once(tmp_path):
    small = {"num_layers": 1, "batch_size": 128, "max_epochs": 30, "patience": 10, "volatility": "ewma"}
    front = [
        (
            number,
            1.0 + number,
            1.0 + number,
            small | {"hidden_size": 32, "sequence_length": 20, "learning_rate": rate},
        )
        for number, rate in enumerate((0.001, 0.002, 0.003))
    ]
    arguments = ["--warm-start", str(write_summary(tmp_path, *front)), "--num-samples", "4"]
    job = tmp_path / "job"
    process = start_job(job, *arguments)
    wait_for_finished(job, 1, process)
    process.kill()
    process.communicate(timeout=60)
    code, errors = wait_for_end(start_job(job, *arguments, "--resume"))
    assert code == 0, errors
    trials = study_of(job).trials
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == 4
    assert all(trial.user_attrs["reason"] == "interrupted" for trial in trials if trial not in complete)
    origins = [
        trial.user_attrs["warm_start"]["trial_number"]
        for trial in complete
        if "warm_start" in trial.user_attrs
    ]
    assert sorted(origins) == [0, 1, 2]
    rates = {
        trial.user_attrs["warm_start"]["trial_number"]: trial.params["learning_rate"]
        for trial in complete[:3]
    }
    assert rates == {0: 0.001, 1: 0.002, 2: 0.003}
