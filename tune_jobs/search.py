"""The search: Ray Tune runs trials that an Optuna study suggests, until enough are finished."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler

from tune_jobs import study as studies
from tune_jobs.resources import Resources
from tune_jobs.searcher import Finished, SearchInput, StudySearch, TrialWatch
from tune_jobs.stopping import Stop, StopWhenTold, stop_on_signals
from tune_jobs.trial import FIRST_RUNG, REDUCTION, LSTMTrial

RETRIES = 1
"""Times a trial whose worker died goes on from its last rung before it counts as failed."""


def run_search(
    search: SearchInput,
    study: optuna.Study,
    storage: optuna.storages.RDBStorage,
    *,
    samples: int,
    resources: Resources,
    checkpoint_dir: Path,
    storage_path: str,
    stop: Stop,
    on_finished: Callable[[Finished], None] = lambda finished: None,
    on_event: Callable[[], None] = lambda: None,
) -> float:
    """Run ``samples`` more trials of ``study`` on the connected cluster; give back the seconds it took.

    Ends early when ``stop`` says so; trials then still running are told FAIL as interrupted and their
    parameters queued in the study.

    Args:
        search: the shared series, the experiment's settings and the search space.
        study: the opened study.
        storage: its storage.
        samples: trials to finish, failures among them.
        resources: what each trial asks for.
        checkpoint_dir: where each finished trial's checkpoint goes.
        storage_path: where trials keep their state while they run; every node must reach it.
        stop: asked after every event of Tune's loop.
        on_finished: called at each trial's end.
        on_event: called often, for progress.

    Raises:
        OSError: when the disk cannot be written; everything finished before is safe.
        sqlalchemy.exc.SQLAlchemyError: when the database cannot be; likewise.
    """
    watch = TrialWatch(stop, on_event)
    searcher = StudySearch(
        study=study,
        storage=storage,
        # One sampler state per start of the job: a resumed study must not repeat its first draws.
        sampler=optuna.samplers.TPESampler(
            seed=search.experiment.seed + len(study.get_trials(deepcopy=False))
        ),
        search=search,
        watch=watch,
        stop=stop,
        checkpoint_dir=checkpoint_dir,
        on_finished=on_finished,
    )
    trainable = tune.with_parameters(
        LSTMTrial, prepared=search.prepared, experiment=search.experiment, part=search.part
    )
    bundle = {"CPU": resources.cpus_per_trial}
    if resources.gpus_per_trial:
        bundle["GPU"] = resources.gpus_per_trial
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([bundle])),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=AsyncHyperBandScheduler(
                time_attr="epoch",
                metric="val_loss_best",
                mode="min",
                grace_period=FIRST_RUNG,
                reduction_factor=REDUCTION,
                # Trials end by themselves: the scheduler only compares them at the rungs.
                max_t=search.space.longest_training + 1,
            ),
            num_samples=samples,
            max_concurrent_trials=resources.max_concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=study.study_name,
            storage_path=storage_path,
            stop=StopWhenTold(stop),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=1),
            callbacks=[watch],
            verbose=0,
        ),
    )
    _quiet_tune()
    started = time.perf_counter()
    with stop_on_signals(stop):
        tuner.fit()
    seconds = time.perf_counter() - started
    if stop.failure is not None:
        raise stop.failure
    studies.put_back_running(study)
    return seconds


def _quiet_tune() -> None:
    """Leave to Tune what it does best: its tables are replaced by ours, its log files by the study.

    Its handling of Ctrl-C is replaced by ours, which the study takes part in.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
