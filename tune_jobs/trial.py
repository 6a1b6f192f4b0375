"""One trial: trains a configuration rung by rung and reports its best state's metrics."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.result import DONE

from forecast.config import ExperimentConfig, TrainConfig
from forecast.errors import ForecastError
from forecast.evaluation import METRICS
from forecast.model import device_for_share
from forecast.split import Part
from forecast.training import Trainer
from forecast.windows import PreparedSeries
from tune_jobs.space import complete_params

FIRST_RUNG = 5
"""Epochs before the first comparison with other trials."""
REDUCTION = 3
"""Each rung is this many times the last; one in this many trials goes on past it."""

REPORTED = ("val_loss_best", "epoch", "best_epoch", "seconds")
"""What a trial reports beside its objectives; kept as attributes of the study's trial."""
FAILURE = "failure"
"""Key of a result that ends a trial as failed: the reason, in one line."""

BEST_FILE = "best.pt"
STATE_FILE = "state.pt"
TRIAL_NUMBER = "trial_number"
"""Key of the study's trial number in a trial's configuration."""


def next_rung(epoch: int) -> int:
    """The first rung after ``epoch``: 5, 15, 45, 135, ..."""
    rung = FIRST_RUNG
    while rung <= epoch:
        rung *= REDUCTION
    return rung


def trial_config(experiment: ExperimentConfig, params: dict[str, Any], device: str = "auto") -> TrainConfig:
    """The training configuration of one trial: the experiment's settings with the sampled hyperparameters."""
    shared = {name: getattr(experiment, name) for name in ExperimentConfig.model_fields}
    return TrainConfig(**shared, **complete_params(params), device=device)


class LSTMTrial(tune.Trainable):
    """Trains one configuration; its actor is reused for the next one.

    A step trains up to the next rung. Every result carries the three objectives, so that a trial stopped
    at any rung has them.
    """

    def setup(  # type: ignore[override]  # with_parameters gives the rest
        self, config: dict[str, Any], *, prepared: PreparedSeries, experiment: ExperimentConfig, part: Part
    ) -> None:
        """Keep what all trials share, then start the first configuration.

        Args:
            config: hyperparameters and the study's trial number.
            prepared: the shared series, from the object store.
            experiment: settings that all trials share.
            part: rows the objectives are computed on.
        """
        self._prepared, self._experiment, self._part = prepared, experiment, part
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start another configuration in this process."""
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        # The trainer is built in the first step: what is wrong with a configuration is then that trial's
        # failure, with its reason, and not its actor's.
        self._params = {name: value for name, value in config.items() if name != TRIAL_NUMBER}
        self._trainer: Trainer | None = None
        self._seconds = 0.0

    @property
    def _current(self) -> Trainer:
        if self._trainer is None:
            resources = self.trial_resources.required_resources if self.trial_resources else {}
            torch.set_num_threads(max(1, int(resources.get("CPU", 1))))
            config = trial_config(self._experiment, self._params, _assigned_device())
            self._trainer = Trainer(self._prepared, config)
        return self._trainer

    def step(self) -> dict[str, Any]:
        """Train to the next rung and report; an exception is a result too.

        So the study learns the reason, and the actor lives on for the next trial.
        """
        started = time.perf_counter()
        try:
            trainer = self._current
            trainer.advance(next_rung(trainer.epoch))
            objectives = trainer.evaluate(self._part).model
        except Exception as error:
            self._trainer = None
            nothing = dict.fromkeys((*METRICS, "val_loss_best"), math.nan)
            return {**nothing, "epoch": 0, FAILURE: _in_one_line(error), DONE: True}
        self._seconds += time.perf_counter() - started
        report = (trainer.best_loss, trainer.epoch, trainer.best_epoch, self._seconds)
        return {**objectives, **dict(zip(REPORTED, report, strict=True)), DONE: trainer.finished}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the best weights (what the job keeps) and the whole state (to go on after a failure)."""
        if self._trainer is None:
            return
        trainer, directory = self._trainer, Path(checkpoint_dir)
        best = {
            "model_state": trainer.best_state(),
            "val_loss_best": trainer.best_loss,
            "best_epoch": trainer.best_epoch,
            "validation": trainer.evaluate().to_dict(),
        }
        torch.save(best, directory / BEST_FILE)
        torch.save({"trainer": trainer.state_dict(), "seconds": self._seconds}, directory / STATE_FILE)

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]  # Ray's hint is of old
        """Go on from ``save_checkpoint``."""
        state = torch.load(Path(checkpoint_dir) / STATE_FILE, weights_only=True)
        self._current.load_state_dict(state["trainer"])
        self._seconds = state["seconds"]


def _assigned_device() -> str:
    return device_for_share(ray.get_runtime_context().get_accelerator_ids().get("GPU"))


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ForecastError) else f"{type(error).__name__}: {text}"
