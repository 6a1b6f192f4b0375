"""Run the search: Ray Tune runs the trials that an Optuna study suggests, until enough have finished."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
from ray import tune

from tune_jobs import study as studies
from tune_jobs.placement import Placement, SlotResources
from tune_jobs.scheduler import Rungs
from tune_jobs.searcher import Finished, SearchInput, StudySearch, TrialWatch, put_back_running
from tune_jobs.states import StateStore
from tune_jobs.stopping import SearchStopper, Stop, stop_on_signals
from tune_jobs.trial import Ticket, TrainingTrial, unit_of_work

MIN_STARTUP = 10
"""Finished trials below which the sampler draws at random; Optuna's default."""
RETRIES = 2
"""How often a trial whose worker died continues from its last rung before it counts as failed."""


@dataclass(frozen=True)
class SearchSeconds:
    """The time that a search took, in seconds.

    Attributes:
        wall: from its start to its end.
        cores: core-seconds, the CPUs of the cluster integrated over that time.
        asking: the driver's time spent on suggesting hyperparameters.
        keeping: the driver's time spent on saving checkpoints and the study at each trial's end.
    """

    wall: float
    cores: float
    asking: float
    keeping: float


def run_search(
    search: SearchInput,
    study: optuna.Study,
    storage: optuna.storages.RDBStorage,
    *,
    samples: int,
    placement: Placement,
    states: StateStore,
    checkpoint_dir: Path,
    stop: Stop,
    on_finished: Callable[[Finished], None] = lambda finished: None,
    on_event: Callable[[], None] = lambda: None,
    trial_class: type[TrainingTrial] = TrainingTrial,
) -> SearchSeconds:
    """Run ``samples`` more trials of ``study`` on the connected cluster, and return the time that it took.

    Ends early when ``stop`` says so. Trials still running then are marked FAIL as interrupted and their parameters
    queued in the study, if the database can still be written.

    Args:
        search: the shared series, the experiment's settings and the search space.
        study: the opened study.
        storage: its storage.
        samples: trials to finish, counting failures.
        placement: gives each trial its resources, and limits how many run at a time.
        states: where trials keep their state while they run; every node must be able to reach this place.
        checkpoint_dir: where each finished trial's checkpoint goes.
        stop: checked after every event of Tune's loop.
        on_finished: called at each trial's end.
        on_event: called often, for progress.
        trial_class: trains one configuration; benchmarks replace it.

    Raises:
        OSError: when the disk cannot be written; everything finished before that is safe.
        sqlalchemy.exc.SQLAlchemyError: when the database cannot be written; likewise.
        StudyError: when workers cannot start, or cannot save their state; likewise.
    """
    _quiet_tune()
    watch = TrialWatch(states, on_event)
    ended = 0

    def count(finished: Finished) -> None:
        nonlocal ended
        ended += 1
        on_finished(finished)

    searcher = StudySearch(
        study=study,
        storage=storage,
        sampler=_sampler(search, study, samples, placement),
        search=search,
        placement=placement,
        states=states,
        watch=watch,
        stop=stop,
        checkpoint_dir=checkpoint_dir,
        on_finished=count,
    )
    trainable = tune.with_parameters(
        trial_class,
        folds=search.folds,
        experiment=search.experiment,
        part=search.part,
        states=states,
        unit=unit_of_work(search.experiment, search.space, search.prepared),
        start=search.start,
    )
    started, cores_before = time.perf_counter(), placement.core_seconds
    with _failure_first(stop), stop_on_signals(stop):
        # One round, plus more for trials that were put back because their GPU is gone.
        while ended < samples and not stop.now():
            before = ended + searcher.put_back
            tune.Tuner(
                tune.with_resources(trainable, lambda config: SlotResources(config[Ticket.KEY].slot)),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=Rungs(
                        placement,
                        [trial.user_attrs.get("comparisons", []) for trial in studies.completed(study)],
                    ),
                    num_samples=samples - ended,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name=uuid.uuid4().hex[:8],
                    storage_path=states.path,
                    stop=SearchStopper(stop, watch.end_steps),
                    failure_config=tune.FailureConfig(max_failures=RETRIES),
                    # The watch deletes old states: given a number to keep, Tune would write its full state each time.
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
                    callbacks=[watch],
                    verbose=0,
                ),
            ).fit()
            if ended + searcher.put_back == before:
                break
    placement.look()
    seconds = SearchSeconds(
        wall=time.perf_counter() - started,
        cores=placement.core_seconds - cores_before,
        asking=searcher.seconds.asking,
        keeping=searcher.seconds.keeping,
    )
    with _failure_first(stop):
        put_back_running(study, checkpoint_dir)
    if stop.failure is not None:
        raise stop.failure
    return seconds


@contextlib.contextmanager
def _failure_first(stop: Stop) -> Iterator[None]:
    """Drop an error that follows from the failure that stopped the search.

    On a full disk, for example, Tune reads back files that it could not write.
    """
    try:
        yield
    except Exception:
        if stop.failure is None:
            raise


def _sampler(
    search: SearchInput, study: optuna.Study, samples: int, placement: Placement
) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            # A different seed for each start of the job: a resumed study must not repeat its first draws.
            seed=search.experiment.seed + len(study.get_trials(deepcopy=False)),
            multivariate=True,
            group=True,
            n_startup_trials=startup_trials(placement.reach, studies.ended(study) + samples),
        )


def startup_trials(at_a_time: int, samples: int) -> int:
    """Return how many trials must finish before the sampler learns from them.

    The first of a hundred trials to finish are the cheapest, not the best: the sampler waits for as many as run at a
    time, but for no more than a quarter of the job.
    """
    return max(MIN_STARTUP, min(at_a_time, samples // 4))


def _quiet_tune() -> None:
    """Turn off what we replace: Tune's tables (by ours), log files (by the study), Ctrl-C (by ``stop_on_signals``)."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # Tune's experiment state is never read: the study is the state.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")
    # The searcher limits how many trials are under way.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(sys.maxsize))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Ray suspects that the search space trains a model; the time goes to the database on a slow disk.
    warnings.filterwarnings("ignore", message="Define-by-run function")
