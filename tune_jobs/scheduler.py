"""The scheduler: successive halving at the trials' rungs, on a cluster that may lose its GPUs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler

from tune_jobs.placement import Placement
from tune_jobs.trial import FIRST_RUNG, LAST_RUNG, REDUCTION
from tune_jobs.tune_internals import add_earlier_rungs, keep_processes

BLOCKED_AFTER = 10.0
"""Seconds after which a GPU share without a process is taken to be waiting for a core, not just starting."""


class Rungs(AsyncHyperBandScheduler):
    """Successive halving at the trials' rungs (ASHA, Li et al. 2020), on a cluster that may lose its GPUs."""

    def __init__(self, placement: Placement, earlier: Iterable[Sequence[tuple[float, float]]]) -> None:
        """Start from the rungs that ``earlier`` trials reached, as pairs of work and loss."""
        super().__init__(
            time_attr="work",
            metric="val_loss_best",
            mode="min",
            grace_period=FIRST_RUNG,
            reduction_factor=REDUCTION,
            # Trials end on their own: the scheduler only compares them at the rungs.
            max_t=2 * LAST_RUNG,
        )
        self._placement = placement
        self._blocked_since: float | None = None
        add_earlier_rungs(self, earlier)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Stop trials that wait for a GPU that will not come: the study puts them back, to run on a core."""
        keep_processes(tune_controller, lambda: self._placement.has_room() and not self._gpu_is_blocked)
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
        """Check whether a free GPU share waits for a core of its node that a trial without a share has taken.

        Ray places such trials on any node. While a share waits, their processes are not kept: the core goes to the
        share, which asked first, and the next trial without a share starts a process elsewhere.
        """
        on_gpus = [trial for trial in live if self._placement.has_share(trial.trial_id)]
        running = sum(trial.status == trial.RUNNING for trial in on_gpus)
        if running < min(len(on_gpus), self._placement.gpu_slots):
            self._blocked_since = self._blocked_since or time.monotonic()
        else:
            self._blocked_since = None
