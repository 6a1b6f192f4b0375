"""The private names of Tune that a job depends on, each behind a function or class that says why."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import optuna
import ray
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.tune.utils.object_cache import _ObjectCache


def add_earlier_rungs(
    scheduler: AsyncHyperBandScheduler, earlier: Iterable[Sequence[tuple[float, float]]]
) -> None:
    """Give a scheduler the comparisons, as pairs of work and loss, of trials that it did not run.

    Each counts at the highest rung that its work had reached. Ray has no public way to do this.
    """
    (bracket,) = scheduler._brackets
    for number, comparisons in enumerate(earlier):
        for work, loss in comparisons:
            reached = [rewards for rung, rewards in bracket._rungs if rung <= work]
            if reached:
                reached[0].setdefault(f"earlier {number}", -loss)


class SlotProcesses(_ObjectCache):
    """Keeps the process of a trial that has ended while another trial may come for its slot.

    Tune's own cache drops processes while any other is still starting. Once no more trials will come, a kept process
    would hold resources that a waiting one needs.
    """

    def __init__(self, more_to_come: Callable[[], bool]) -> None:
        super().__init__()
        self._more_to_come = more_to_come

    def cache_object(self, key: Any, obj: Any) -> bool:
        """Keep the process."""
        self._cached_objects[key].append(obj)
        self._num_cached_objects += 1
        return True

    def flush_cached_objects(self, force_all: bool = False) -> Generator[Any, None, None]:
        """Drop all processes, or none."""
        if force_all or not self._more_to_come():
            yield from super().flush_cached_objects(force_all=True)


def keep_processes(tune_controller: Any, more_to_come: Callable[[], bool]) -> None:
    """Replace Tune's cache of processes with ``SlotProcesses``; repeated calls change nothing.

    Args:
        tune_controller: the controller that Tune passes to schedulers.
        more_to_come: returns whether another trial may come; the searcher must agree.
    """
    controller = tune_controller._tune_controller
    if not isinstance(controller._actor_cache, SlotProcesses):
        # Ray has no public way to choose which processes are kept.
        controller._actor_cache = SlotProcesses(
            lambda: more_to_come() and not controller._search_alg.is_finished()
        )


def process_of(trial: Any) -> Any:
    """Return the actor that a Tune trial runs in; None while it has none."""
    return trial.temporary_state.ray_actor


def error_of(trial: Any) -> ray.exceptions.RayError | None:
    """Return the error that ended a Tune trial's step or process; None when there is none."""
    # Tune's own ``get_pickled_error`` reads a copy of this file that may not exist yet.
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return None
    error: ray.exceptions.RayError = ray.cloudpickle.loads(Path(path).read_bytes())
    return error


def optuna_trial(searcher: OptunaSearch, trial_id: str) -> optuna.Trial:
    """Return the study's trial behind a Tune trial that ``searcher`` suggested."""
    trial: optuna.Trial = searcher._ot_trials[trial_id]
    return trial
