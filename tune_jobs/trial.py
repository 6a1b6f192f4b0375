"""One trial: it trains a configuration rung by rung, and reports the metrics of its best state."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import ray
import torch
from ray import tune
from ray.tune.result import DONE

from forecast.config import ExperimentConfig, TrainConfig
from forecast.errors import ForecastError
from forecast.model.checkpoint import Checkpoint
from forecast.model.device import device_for_share
from forecast.model.network import multiply_adds
from forecast.model.panel import Prepared
from forecast.model.split import Part
from forecast.model.start import member_of
from forecast.model.training import Trainer
from forecast.scores.metrics import METRICS
from tune_jobs.folds import FoldTrainers
from tune_jobs.placement import Slot
from tune_jobs.space import SearchSpace, complete_params
from tune_jobs.states import StateStore

FIRST_RUNG = 1
"""Work before the first comparison with other trials.

The work of a trial is the number of windows that it has seen times the cost of one, in units of ``TYPICAL_SHARE`` of
an epoch of the search space's typical configuration: trials are compared after the same computation, not after the same
epochs.
"""
TYPICAL_SHARE = 1 / 3
REDUCTION = 3
"""Each rung is this many times the previous one; one in this many trials continues past it."""
LAST_RUNG = 27
"""Work after which a trial ends."""
EXPECTED_WORK = FIRST_RUNG * (1 + (1 - 1 / REDUCTION) * round(math.log(LAST_RUNG / FIRST_RUNG, REDUCTION)))
"""Mean work of a trial of which one in ``REDUCTION`` continues past each rung."""
LEAST_SHARE = 1 / 8
"""Smallest share of an epoch between comparisons: validating a model more often would cost more than its training."""

REPORTED = ("val_loss_best", "epoch", "best_epoch", "work", "seconds", "started", "gpus", "comparisons")
"""Keys that a trial reports in addition to its objectives; kept as attributes of the study's trial.

``val_loss_best`` is the mean over the validation folds; ``best_epoch`` is that of the last fold. ``seconds`` is its
training time; ``comparisons`` holds, for each rung it reached, the pair of work and best validation loss.
"""
EARLIER_SECONDS = "earlier_seconds"
"""Key of a result: the part of ``seconds`` from before the trial was interrupted and put back."""
FAILURE = "failure"
"""Key of a result that ends a trial as failed: the reason, in one line."""

GPU_ERRORS = (torch.AcceleratorError, torch.OutOfMemoryError)
"""Errors that leave a process's GPU unusable, or come from others on it: the trial continues in another process."""

STATE_FILE = "state.pt"


@dataclass(frozen=True)
class Ticket:
    """The inputs of a trial other than its hyperparameters.

    Attributes:
        number: its number in the study.
        slot: where it runs.
        state: name of the state to continue from, if it was interrupted before.
    """

    KEY: ClassVar[str] = "ticket"
    """The ticket's key in the trial's configuration."""

    number: int
    slot: Slot
    state: str | None = None


def next_rung(work: float) -> int:
    """Return the first rung above this work; rungs are 1, 3, 9 and 27."""
    rung = FIRST_RUNG
    while rung <= work:
        rung *= REDUCTION
    return rung


def unit_of_work(experiment: ExperimentConfig, space: SearchSpace, prepared: Prepared) -> float:
    """Return windows times cost per window in ``TYPICAL_SHARE`` of an epoch of the space's typical configuration."""
    return TYPICAL_SHARE * _epoch(experiment, space.typical, prepared)


def most_epochs(
    experiment: ExperimentConfig, space: SearchSpace, params: dict[str, Any], prepared: Prepared
) -> float:
    """Return the epochs after which a trial with these hyperparameters reaches ``LAST_RUNG``."""
    return LAST_RUNG * unit_of_work(experiment, space, prepared) / _epoch(experiment, params, prepared)


def _epoch(experiment: ExperimentConfig, params: dict[str, Any], prepared: Prepared) -> float:
    """Return windows times cost per window in an epoch."""
    windows = sum(len(part.split.targets("train", params["sequence_length"])) for part in prepared.parts)
    return max(1, min(windows, experiment.windows_per_epoch)) * max(1, trial_cost(experiment, params))


def trial_config(
    experiment: ExperimentConfig, params: dict[str, Any], *, threads: int, device: str = "auto"
) -> TrainConfig:
    """Build one trial's training configuration: the experiment's settings with the sampled hyperparameters."""
    return TrainConfig(**_settings(experiment, params), threads=threads, device=device)


def trial_cost(experiment: ExperimentConfig, params: dict[str, Any]) -> int:
    """Multiply-adds of one window through a trial's network; 0 if the network cannot tell.

    The configuration is not validated, and no error is raised: an impossible configuration is the failure of its trial,
    and must not end the search.
    """
    try:
        return multiply_adds(TrainConfig.model_construct(**_settings(experiment, params)))
    except Exception:  # a network of another package can fail in any way
        return 0


def _settings(experiment: ExperimentConfig, params: dict[str, Any]) -> dict[str, Any]:
    shared = {name: getattr(experiment, name) for name in ExperimentConfig.model_fields}
    # A trial is one member: only the pick is trained with all of them.
    return {**shared, "members": 1, **complete_params(params)}


class TrainingTrial(tune.Trainable):
    """Trains one configuration on every validation fold; its actor is reused for the next one.

    A step trains up to the next rung. Every result carries all metrics, so that a trial has its objectives whichever
    rung it stops at.
    """

    def setup(  # type: ignore[override]  # with_parameters gives the rest
        self,
        config: dict[str, Any],
        *,
        folds: Sequence[Prepared],
        experiment: ExperimentConfig,
        part: Part,
        states: StateStore,
        unit: float,
        start: Checkpoint | None = None,
    ) -> None:
        """Store what all trials share, then start the first configuration.

        Args:
            config: hyperparameters and the trial's ticket.
            folds: the shared series of each validation fold, from the object store; the last one's model is kept.
            experiment: settings that all trials share.
            part: rows the objectives are computed on.
            states: where interrupted trials left their state.
            unit: the unit of work, as ``unit_of_work``.
            start: the model that the trials start from; None for untrained networks.
        """
        self._folds, self._experiment, self._part, self._states = folds, experiment, part, states
        self._unit, self._start_from = unit, start
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another configuration in this process."""
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        # The first step builds the trainer, so that a bad configuration fails its trial, with a reason, and not the
        # actor.
        self._ticket: Ticket = config[Ticket.KEY]
        self._params = {name: value for name, value in config.items() if name != Ticket.KEY}
        self._trainers: FoldTrainers | None = None
        self._seconds = self._earlier_seconds = 0.0
        self._comparisons: list[tuple[float, float]] = []
        self._started = datetime.now(UTC).isoformat(timespec="milliseconds")

    @property
    def _current(self) -> FoldTrainers:
        if self._trainers is None:
            self._trainers = self._new_trainers()
            if self._ticket.state:
                self._go_on_from(self._states.open(self._ticket.state))
        return self._trainers

    def _new_trainers(self) -> FoldTrainers:
        threads = max(1, int(self._ticket.slot.demand.cpus))
        config = trial_config(self._experiment, self._params, threads=threads, device=_assigned_device())
        return FoldTrainers([self._new_trainer(fold, config) for fold in self._folds])

    def _new_trainer(self, prepared: Prepared, config: TrainConfig) -> Trainer:
        """Create the trainer of one fold; benchmarks replace it."""
        start = self._start_from
        return Trainer(prepared, config, member_of(start, config, 0) if start else None)

    def _go_on_from(self, saved: tune.Checkpoint) -> None:
        """Continue where the trial was interrupted, or start again if its saved state cannot be read."""
        try:
            with saved.as_directory() as directory:
                self.load_checkpoint(directory)
            self._earlier_seconds = self._seconds
        except (OSError, EOFError, KeyError, RuntimeError, pickle.UnpicklingError):
            self._trainers, self._seconds, self._comparisons = self._new_trainers(), 0.0, []

    def step(self) -> dict[str, Any]:
        """Train to the next rung and report; an exception is reported too, unless it is the GPU's.

        This way the study records the reason, and the actor survives for the next trial.
        """
        try:
            trainers = self._current
            started = time.perf_counter()
            self._advance(trainers)
            self._seconds += time.perf_counter() - started
            metrics = trainers.evaluate(self._part)
        except GPU_ERRORS:
            raise
        except Exception as error:
            self._trainers = None
            nothing = dict.fromkeys((*METRICS, "val_loss_best"), math.nan)
            return {**nothing, "epoch": 0, FAILURE: in_one_line(error), DONE: True}
        work = self._work(trainers)
        self._comparisons.append((work, trainers.best_loss))
        report = (
            trainers.best_loss,
            trainers.position,
            trainers.last.best_epoch,
            work,
            self._seconds,
            self._started,
            self._ticket.slot.demand.gpus,
            list(self._comparisons),
        )
        return {
            **{name: metrics[name] for name in METRICS},
            **dict(zip(REPORTED, report, strict=True)),
            EARLIER_SECONDS: self._earlier_seconds,
            DONE: trainers.finished or work >= LAST_RUNG,
        }

    @property
    def _epoch_work(self) -> float:
        """The work of one epoch."""
        return _epoch(self._experiment, self._params, self._folds[-1]) / self._unit

    def _work(self, trainers: FoldTrainers) -> float:
        return round(trainers.position * self._epoch_work, 6)

    def _advance(self, trainers: FoldTrainers) -> None:
        """Train to the next rung, unless the last one is reached: a trial may have been put back after it."""
        if (work := self._work(trainers)) < LAST_RUNG:
            trainers.advance(max(next_rung(work) / self._epoch_work, trainers.position + LEAST_SHARE))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the full state: a trial continues from it after a failure, and the job keeps its best weights."""
        if self._trainers is None:
            return
        last = self._trainers.last
        state = {
            **self._trainers.state_dict(),
            "validation": asdict(last.evaluate()),
            "calibration_scores": torch.from_numpy(last.calibration_scores()),
            "device": last.device.type,
            "threads": last.config.threads,
            "seconds": self._seconds,
            "comparisons": self._comparisons,
        }
        torch.save(state, Path(checkpoint_dir) / STATE_FILE)

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]  # Ray's hint is outdated
        """Continue from a state that ``save_checkpoint`` wrote."""
        state = read_state(checkpoint_dir)
        self._current.load_state_dict(state)
        self._seconds, self._comparisons = state["seconds"], list(state.get("comparisons", ()))


def read_state(directory: str | Path) -> dict[str, Any]:
    """Read what ``TrainingTrial.save_checkpoint`` wrote, onto the CPU; tensors are read when they are used."""
    state: dict[str, Any] = torch.load(
        Path(directory) / STATE_FILE, weights_only=True, map_location="cpu", mmap=True
    )
    return state


def _assigned_device() -> str:
    return device_for_share(ray.get_runtime_context().get_accelerator_ids().get("GPU"))


def in_one_line(error: Exception) -> str:
    """Return an error's text, preceded by its type unless it is one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ForecastError) else f"{type(error).__name__}: {text}"
