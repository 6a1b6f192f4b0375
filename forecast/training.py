"""Training: mean squared error, Adam, clipped gradients, early stopping, the best validation state kept.

One loop, in ``Trainer.advance``, that can be run to the end or in pieces; pieces give the same weights as
one go, to the bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forecast.checkpoint import Checkpoint
from forecast.config import TrainConfig
from forecast.errors import TrainingError
from forecast.evaluation import Evaluation, evaluate_forecasts
from forecast.model import LSTMForecaster, choose_device
from forecast.series import Series
from forecast.split import Part, require_rows, split_rows
from forecast.windows import Encoding, PreparedSeries, Windows, prepare

INFERENCE_BATCH = 1024
"""Windows per forward pass without gradients: bounds memory, large enough to cost nothing."""

STAGES_PER_SEED = 1_000_003
"""Distance between the generator seeds of neighbouring ``seed`` options; more than there are epochs."""


class Trainer:
    """Trains one model on a prepared series.

    Attributes:
        epoch: epochs done.
        best_epoch: the epoch whose validation loss was lowest, 0 before the first.
        best_loss: that loss, mean squared error in units of the model's output.
        stale_epochs: epochs since ``best_epoch``.
    """

    def __init__(self, prepared: PreparedSeries, config: TrainConfig) -> None:
        self.config = config
        self.device = choose_device(config.device)
        self._prepared = prepared
        self._validation = prepared.windows("validation", config.sequence_length, config.target)
        train = prepared.windows("train", config.sequence_length, config.target)
        self._train_inputs = torch.from_numpy(train.inputs).to(self.device)
        self._train_wanted = torch.from_numpy(train.wanted).to(self.device)
        self._validation_inputs = torch.from_numpy(self._validation.inputs).to(self.device)
        self._validation_wanted = torch.from_numpy(self._validation.wanted).to(self.device)

        with self._seeded(0):
            self.model = build_model(config).to(self.device)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, fused=True)
        self.epoch = 0
        self.best_epoch = 0
        self.best_loss = math.inf
        self._best_state: dict[str, Tensor] = _copy_state(self.model)
        self._best_outputs: NDArray[np.float32] = np.zeros(len(self._validation), np.float32)

    @property
    def stale_epochs(self) -> int:
        """Epochs since the best one."""
        return self.epoch - self.best_epoch

    @property
    def finished(self) -> bool:
        """Whether the epochs or the patience are used up."""
        return self.epoch >= self.config.max_epochs or self.stale_epochs >= self.config.patience

    def advance(self, until_epoch: int | None = None) -> None:
        """Train until ``until_epoch`` epochs are done, or until finished.

        Raises:
            TrainingError: when a validation loss is not finite.
        """
        stop = self.config.max_epochs if until_epoch is None else until_epoch
        while self.epoch < stop and not self.finished:
            with self._seeded(self.epoch + 1):
                self._train_epoch()
            self.epoch += 1
            self._validate()

    def _train_epoch(self) -> None:
        self.model.train()
        # The permutation is drawn on the CPU, so that every device sees the batches in the same order.
        order = torch.randperm(len(self._train_wanted)).to(self.device)
        batches = zip(
            self._train_inputs[order].split(self.config.batch_size),
            self._train_wanted[order].split(self.config.batch_size),
            strict=True,
        )
        parameters = list(self.model.parameters())
        for inputs, wanted in batches:
            loss = nn.functional.mse_loss(self.model(inputs), wanted)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, self.config.grad_clip_norm)
            self._optimizer.step()

    def _validate(self) -> None:
        outputs = forward_in_batches(self.model, self._validation_inputs)
        loss = float(nn.functional.mse_loss(outputs, self._validation_wanted))
        if not math.isfinite(loss):
            raise TrainingError(
                f"validation loss is {loss} after epoch {self.epoch}: training diverged; "
                f"lower --learning-rate (now {self.config.learning_rate:g})"
            )
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.epoch
            self._best_state = _copy_state(self.model)
            self._best_outputs = outputs.cpu().numpy()

    def evaluate(self, part: Part = "validation") -> Evaluation:
        """Metrics on the rows of ``part``, in price units, of the best state so far."""
        if part == "validation":
            return _score(self._best_outputs, self._validation, self._prepared, self.config)
        windows = self._prepared.windows(part, self.config.sequence_length, self.config.target)
        best = build_model(self.config).to(self.device)
        best.load_state_dict(self._best_state)
        outputs = forward_in_batches(best, torch.from_numpy(windows.inputs).to(self.device))
        return _score(outputs.cpu().numpy(), windows, self._prepared, self.config)

    def best_state(self) -> dict[str, Tensor]:
        """The weights with the lowest validation loss so far, on the CPU."""
        return {name: value.cpu() for name, value in self._best_state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on in another process; plain values and tensors."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best_state": self._best_state,
            "best_outputs": torch.from_numpy(self._best_outputs),
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict`` of a trainer with the same series and configuration."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best_state = {name: value.to(self.device) for name, value in state["best_state"].items()}
        self._best_outputs = state["best_outputs"].numpy()
        self.best_loss = state["best_loss"]
        self.best_epoch = state["best_epoch"]
        self.epoch = state["epoch"]

    @contextmanager
    def _seeded(self, stage: int) -> Iterator[None]:
        """Draw everything random of one stage (0: weights, n: epoch n) from the seed and the stage alone.

        So an epoch's batches and dropout do not depend on how training was cut into pieces, in which
        process it runs, or on what else in the process uses torch's generators.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.config.seed * STAGES_PER_SEED + stage)
            yield


@dataclass(frozen=True)
class TrainResult:
    """What ``train`` gives back: the checkpoint, its scores on validation and test, epochs and seconds."""

    checkpoint: Checkpoint
    validation: Evaluation
    test: Evaluation
    epochs: int
    seconds: float


def train(
    series: Series, config: TrainConfig, *, on_epoch: Callable[[Trainer], None] | None = None
) -> TrainResult:
    """Train one model on ``series``, score it on validation and test, and wrap it as a checkpoint.

    Args:
        series: clean prices; ``config.symbol`` and ``config.feature`` are taken from it.
        config: every option of the training.
        on_epoch: called after each epoch, for progress.

    Raises:
        DataError: when the series is too short for the window length or does not vary.
        TrainingError: when training diverges.
    """
    config = config.model_copy(update={"symbol": series.symbol, "feature": series.feature})
    require_rows(len(series), config.sequence_length, config.train_ratio, config.val_ratio_within_train)
    started = time.perf_counter()
    prepared = prepare(series, config)
    trainer = Trainer(prepared.without_test(), config)
    while not trainer.finished:
        trainer.advance(trainer.epoch + 1)
        if on_epoch:
            on_epoch(trainer)
    seconds = time.perf_counter() - started
    validation = trainer.evaluate()
    checkpoint = Checkpoint.create(
        model_state=trainer.best_state(),
        config=config,
        prepared=prepared,
        val_loss_best=trainer.best_loss,
        best_epoch=trainer.best_epoch,
        validation=validation,
        provenance=series.provenance.to_dict(),
    )
    test = evaluate_part(checkpoint, prepared, "test")
    return TrainResult(checkpoint.with_test(test), validation, test, trainer.epoch, seconds)


def evaluate_part(checkpoint: Checkpoint, prepared: PreparedSeries, part: Part) -> Evaluation:
    """Score a checkpoint on one part of a prepared series, beside persistence on the same rows."""
    config = checkpoint.config
    windows = prepared.windows(part, config.sequence_length, config.target)
    outputs = forward_in_batches(checkpoint.build_model(), torch.from_numpy(windows.inputs))
    return _score(outputs.numpy(), windows, prepared, config)


def evaluate(checkpoint: Checkpoint, series: Series, part: Part = "test") -> Evaluation:
    """Score a checkpoint on one part of ``series``, beside persistence on the same rows.

    The series is split by the checkpoint's ratios and normalized by the checkpoint's statistics.
    """
    config = checkpoint.config
    require_rows(len(series), config.sequence_length, config.train_ratio, config.val_ratio_within_train)
    split = split_rows(len(series), config.train_ratio, config.val_ratio_within_train)
    normalized = checkpoint.normalization.normalize(series.values)
    return evaluate_part(checkpoint, PreparedSeries(normalized, checkpoint.normalization, split), part)


def build_model(config: TrainConfig) -> LSTMForecaster:
    """The untrained network of a configuration."""
    return LSTMForecaster(
        config.hidden_size, config.num_layers, config.dropout, zero_head=config.target == "residual"
    )


def forward_in_batches(model: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs (n,) for inputs (n, length) without gradients or dropout; leaves ``model`` in eval mode."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in inputs.split(INFERENCE_BATCH)])


def _score(
    outputs: NDArray[np.float32], windows: Windows, prepared: PreparedSeries, config: TrainConfig
) -> Evaluation:
    encoding = Encoding(prepared.normalization, config.target)
    predicted = encoding.prices(outputs, windows.last)
    return evaluate_forecasts(windows.actual, predicted, windows.previous)


def _copy_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
