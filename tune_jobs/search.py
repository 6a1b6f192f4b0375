"""The search: Ray Tune runs trials that an Optuna study suggests, until enough are finished."""

from __future__ import annotations

import logging
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.utils.object_cache import _ObjectCache

from tune_jobs import study as studies
from tune_jobs.placement import Placement, SlotResources
from tune_jobs.searcher import Finished, SearchInput, StudySearch, TrialWatch, put_back_running
from tune_jobs.states import StateStore
from tune_jobs.stopping import Stop, StopWhenTold, stop_on_signals
from tune_jobs.trial import FIRST_RUNG, REDUCTION, LSTMTrial, Ticket

MIN_STARTUP = 10
"""Finished trials below which the sampler draws at random, Optuna's own default."""
BLOCKED_AFTER = 10.0
"""Seconds after which a share of a GPU without a process is taken to wait for a core, and not just to start."""
RETRIES = 2
"""Times a trial whose worker died goes on from its last rung before it counts as failed."""


class Rungs(AsyncHyperBandScheduler):
    """Successive halving at the trials' rungs (ASHA, Li et al. 2020), on a cluster that may lose its GPUs."""

    def __init__(
        self, placement: Placement, longest_training: int, earlier: Iterable[Sequence[tuple[float, float]]]
    ) -> None:
        """Start with what ``earlier`` trials reported at their rungs: epochs and losses."""
        super().__init__(
            time_attr="epoch",
            metric="val_loss_best",
            mode="min",
            grace_period=FIRST_RUNG,
            reduction_factor=REDUCTION,
            # Trials end by themselves: the scheduler only compares them at the rungs.
            max_t=longest_training + 1,
        )
        self._placement = placement
        self._blocked_since: float | None = None
        # Ray has no public way to tell the scheduler of trials that it did not run.
        (bracket,) = self._brackets
        for number, rungs in enumerate(earlier):
            losses = dict(rungs)
            for epoch, rewards in bracket._rungs:
                if epoch in losses:
                    rewards[f"earlier {number}"] = -losses[epoch]

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """End a trial that waits for a GPU that will not come: the study takes it back, to run on a core."""
        controller = tune_controller._tune_controller
        if not isinstance(controller._actor_cache, SlotProcesses):
            # Ray has no public way to say which processes are kept.
            controller._actor_cache = SlotProcesses(
                lambda: (
                    self._placement.has_room()
                    and not controller._search_alg.is_finished()
                    and not self._gpu_is_blocked
                )
            )
        live = list(tune_controller.get_live_trials())
        for trial in live:
            if trial.status == trial.PENDING and self._placement.is_stranded(trial.trial_id):
                tune_controller.stop_trial(trial)
        self._look_for_blocked_gpu(live)
        return super().choose_trial_to_run(tune_controller)

    @property
    def _gpu_is_blocked(self) -> bool:
        since = self._blocked_since
        return since is not None and time.monotonic() - since >= BLOCKED_AFTER

    def _look_for_blocked_gpu(self, live: Sequence[Any]) -> None:
        """See whether a free share of a GPU waits for a core of its node, which trials without a share have taken.

        Ray puts those on any node. Their processes are then not kept: the core goes to the share, which has asked
        first, and the next trial without a share starts a process elsewhere.
        """
        on_gpus = [trial for trial in live if self._placement.has_share(trial.trial_id)]
        running = sum(trial.status == trial.RUNNING for trial in on_gpus)
        if running < min(len(on_gpus), self._placement.gpu_slots):
            self._blocked_since = self._blocked_since or time.monotonic()
        else:
            self._blocked_since = None


class SlotProcesses(_ObjectCache):
    """Keeps the process of every trial that has ended while another trial for its slot may come.

    Tune's own drops it when any other process is still starting. When no trial is to come, a process that is kept
    would hold what a waiting one needs.
    """

    def __init__(self, more_to_come: Callable[[], bool]) -> None:
        super().__init__()
        self._more_to_come = more_to_come

    def cache_object(self, key: Any, obj: Any) -> bool:
        """Keep it."""
        self._cached_objects[key].append(obj)
        self._num_cached_objects += 1
        return True

    def flush_cached_objects(self, force_all: bool = False) -> Generator[Any, None, None]:
        """Drop all, or none."""
        if force_all or not self._more_to_come():
            yield from super().flush_cached_objects(force_all=True)


@dataclass(frozen=True)
class SearchSeconds:
    """Where a search's time went, in seconds.

    Attributes:
        wall: from its start to its end.
        cores: CPUs of the cluster, summed over that time.
        asking: the driver's, for hyperparameters.
        keeping: the driver's, for checkpoints and the study at each trial's end.
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
    trial_class: type[LSTMTrial] = LSTMTrial,
) -> SearchSeconds:
    """Run ``samples`` more trials of ``study`` on the connected cluster, and say where the time went.

    Ends early when ``stop`` says so; trials then still running are told FAIL as interrupted and their
    parameters queued in the study, where the database still can be written.

    Args:
        search: the shared series, the experiment's settings and the search space.
        study: the opened study.
        storage: its storage.
        samples: trials to finish, failures among them.
        placement: what each trial asks for, and how many run at a time.
        states: where trials keep their state while they run; every node must reach it.
        checkpoint_dir: where each finished trial's checkpoint goes.
        stop: asked after every event of Tune's loop.
        on_finished: called at each trial's end.
        on_event: called often, for progress.
        trial_class: what runs; a benchmark's differs.

    Raises:
        OSError: when the disk cannot be written; everything finished before is safe.
        sqlalchemy.exc.SQLAlchemyError: when the database cannot be; likewise.
        StudyError: when workers cannot start, or cannot keep their state; likewise.
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
        prepared=search.prepared,
        experiment=search.experiment,
        part=search.part,
        states=states,
    )
    started, cores_before = time.perf_counter(), placement.core_seconds
    with stop_on_signals(stop):
        # Once, but for trials that were put back because their GPU is gone: these run in another round.
        while ended < samples and not stop.now():
            before = ended + searcher.put_back
            tune.Tuner(
                tune.with_resources(trainable, lambda config: SlotResources(config[Ticket.KEY].slot)),
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=Rungs(
                        placement,
                        search.space.longest_training,
                        [trial.user_attrs.get("rungs", []) for trial in studies.completed(study)],
                    ),
                    num_samples=samples - ended,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name=uuid.uuid4().hex[:8],
                    storage_path=states.path,
                    stop=StopWhenTold(stop, watch.end_steps),
                    failure_config=tune.FailureConfig(max_failures=RETRIES),
                    # How many to keep is the watch's: Tune would write the whole experiment's state each time.
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
    try:
        put_back_running(study, checkpoint_dir)
    except studies.DATABASE_ERRORS:
        if stop.failure is None:
            raise
    if stop.failure is not None:
        raise stop.failure
    return seconds


def _sampler(
    search: SearchInput, study: optuna.Study, samples: int, placement: Placement
) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            # One sampler state per start of the job: a resumed study must not repeat its first draws.
            seed=search.experiment.seed + len(study.get_trials(deepcopy=False)),
            multivariate=True,
            group=True,
            n_startup_trials=startup_trials(placement.reach, studies.ended(study) + samples),
        )


def startup_trials(at_a_time: int, samples: int) -> int:
    """Trials to be finished before the sampler learns from them.

    The first to finish of a hundred are the cheapest, not the best: it waits for as many as run at a time,
    but no longer than a quarter of the job.
    """
    return max(MIN_STARTUP, min(at_a_time, samples // 4))


def _quiet_tune() -> None:
    """Leave to Tune what it does best: its tables are replaced by ours, its log files by the study.

    Its handling of Ctrl-C is replaced by ours, which the study takes part in.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # Tune's picture of the experiment is never read: the study is the state.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")
    # The searcher says how many trials are under way.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(sys.maxsize))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # What it suspects to be training is the database on a slow disk.
    warnings.filterwarnings("ignore", message="Define-by-run function")
