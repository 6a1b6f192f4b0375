"""Training: a likelihood's loss, Adam, gradient clipping, early stopping; the best validation state is kept.

``Trainer.advance`` can run the loop to the end or in pieces: the weights at any position are the same to the last bit,
and patience counts only ends of epochs. The best state has the lowest validation loss at the ends of epochs and pieces.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forecast.config import SEEDS, TrainConfig
from forecast.errors import DataError, TrainingError
from forecast.model.adam import Adam
from forecast.model.checkpoint import Checkpoint, Member, load_checkpoint
from forecast.model.device import choose_device, threads
from forecast.model.forecaster import horizon_stretches
from forecast.model.likelihood import (
    OUTPUTS,
    Outputs,
    calibration_scores,
    distribution,
    point_forecasts,
)
from forecast.model.loss import loss
from forecast.model.market import CHANNELS as MARKET_CHANNELS
from forecast.model.market import HIDDEN_SHARE
from forecast.model.network import build_network, forward_in_batches, networks
from forecast.model.panel import (
    Prepared,
    PreparedPanel,
    evaluation_of,
    fitting_step,
    prepare_panel,
    require_market,
)
from forecast.model.split import Part, Split, moment, require_rows, split_rows
from forecast.model.start import member_of, with_recursions_of
from forecast.model.unseen import forecast_unseen
from forecast.model.volatility import fit_recursion
from forecast.model.windows import Encoding, PreparedSeries, Windows, prepare, views
from forecast.prices.panel import Panel
from forecast.prices.series import Provenance, Series
from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import METRICS, Evaluation, Forecasts, evaluate_forecasts

Array = NDArray[np.float64]

ROUNDING = 1e-6
"""Tolerance for a share of an epoch that is a whole number of batches."""
STAGES_PER_SEED = 1_000_003
"""Distance between the generator seeds of consecutive values of ``seed``; larger than any number of epochs."""


class WindowTensors:
    """Windows on a device, copied out batch by batch."""

    def __init__(self, windows: Windows, device: torch.device) -> None:
        arrays = windows.steps, windows.ends, windows.volatility, windows.targets
        self._steps, self._ends, self.volatility, self.targets = (
            torch.from_numpy(array).to(device) for array in arrays
        )
        self._ages = torch.arange(-windows.length, 0, device=device)
        self._unknown_first = windows.unknown_first

    def __len__(self) -> int:
        return len(self.targets)

    def inputs(self, batch: Tensor | slice) -> Tensor:
        """Model inputs (n, length, channels) of the windows of a batch."""
        inputs = self._steps[self._ends[batch][:, None] + self._ages]
        if self._unknown_first is not None:
            inputs[:, 0, self._unknown_first] = 0.0
        return inputs

    def split(self, size: int) -> Iterator[Tensor]:
        """Model inputs, so many windows at a time."""
        for first in range(0, len(self), size):
            yield self.inputs(slice(first, first + size))


class Trainer:
    """Trains one model on a prepared series, or on all series of a panel at once.

    Raises:
        DataError: when the model is to see the market, and the prepared series do not show one.
        TrainingError: when the network does not start as persistence.

    Attributes:
        epoch: whole epochs done.
        best_epoch: epochs done when the validation loss was lowest, 0 before the first validation.
        best_loss: that loss, in units of the model's output: mean squared error, or negative log-likelihood.
    """

    def __init__(self, prepared: Prepared, config: TrainConfig, start: Member | None = None) -> None:
        """Build the network and the windows.

        Args:
            prepared: the series, or the panel.
            config: the options of the training.
            start: a trained network of the same configuration to start from; None for an untrained one.
        """
        self.config = config
        self.device = choose_device(config.device)
        # A metric that cannot be loaded ends the work before the training, not after it.
        dict(METRICS)
        if config.market and start is None:
            require_market(prepared)
        self._prepared, self._parts = prepared, prepared.parts
        self._encodings = [part.encoding(config) for part in self._parts]
        self._validation = self._windows("validation")
        self._validation_tensors = WindowTensors(Windows.join(self._validation), self.device)
        self._train_tensors = WindowTensors(Windows.join(self._windows("train")), self.device)

        with self._seeded(0):
            self.network = build_network(config).to(self.device)
        if start is None:
            self._require_persistence()
        else:
            self.network.load_state_dict(start.model_state)
        self._optimizer = Adam(self.network.parameters(), config.learning_rate)
        self.epoch = self._batches = 0
        self._generators: list[Tensor] = []
        self.best_epoch: float = 0
        self.best_loss = math.inf
        self._best_end, self._best_end_loss = 0, math.inf
        self._best_state: dict[str, Tensor] = _copy_state(self.network)
        self._best_outputs: Outputs = np.zeros(
            (len(self._validation_tensors), OUTPUTS[config.likelihood]), np.float32
        )
        self._scored: tuple[float, Evaluation] | None = None
        if start is not None:
            with threads(config.threads):
                self._validate()

    def _windows(self, part: Part) -> list[Windows]:
        """The windows of each series."""
        return [
            series.windows(part, encoding)
            for series, encoding in zip(self._parts, self._encodings, strict=True)
        ]

    def _require_persistence(self) -> None:
        """Make sure that a network for a residual target starts as persistence.

        Raises:
            TrainingError: when it does not.
        """
        if self.config.target == "residual":
            first = forward_in_batches(self.network, self._validation_tensors.inputs(slice(1)))
            if bool(first.any()):
                raise TrainingError(
                    f"the untrained network {self.config.network} gives outputs other than zero, which is not "
                    "persistence; set the weights and the bias of its last layer to zero, or use `target=level`"
                )

    @property
    def stale_epochs(self) -> int:
        """Epochs since the one at whose end the validation loss was lowest."""
        return self.epoch - self._best_end

    @property
    def epoch_windows(self) -> int:
        """Number of windows of an epoch."""
        return min(len(self._train_tensors), self.config.windows_per_epoch)

    @property
    def position(self) -> float:
        """Epochs done, with the share of the one under way; an integer at the end of one."""
        return self.epoch + self._batches / self._batches_per_epoch if self._batches else self.epoch

    @property
    def _batches_per_epoch(self) -> int:
        return -(-self.epoch_windows // self.config.batch_size)

    @property
    def finished(self) -> bool:
        """Whether the epochs or the patience are used up."""
        return self.epoch >= self.config.max_epochs or self.stale_epochs >= self.config.patience

    def advance(self, until: float | None = None) -> None:
        """Train until so many epochs are done, or until finished.

        The model is validated after each epoch, and also where ``until`` ends within one: by its next batch.

        Raises:
            TrainingError: when a validation loss is not finite.
        """
        stop = self.config.max_epochs if until is None else until
        with threads(self.config.threads):
            batches = self._batches_per_epoch
            while (stop - self.position) * batches > ROUNDING and not self.finished:
                last = min(
                    batches, max(self._batches + 1, math.ceil((stop - self.epoch) * batches - ROUNDING))
                )
                with self._seeded(self.epoch + 1):
                    self._train_batches(last)
                if last == batches:
                    self.epoch, self._batches = self.epoch + 1, 0
                self._validate()

    def _train_batches(self, last: int) -> None:
        """Train on the batches of this epoch up to ``last``, from where training stopped."""
        self.network.train()
        # The permutation is drawn on the CPU, so that every device sees the batches in the same order.
        windows = self._train_tensors
        order = torch.randperm(len(windows))[: self.epoch_windows].to(self.device)
        if self._batches:
            processor, *gpus = self._generators
            torch.set_rng_state(processor)
            # A trial can continue on another kind of device, whose draws begin anew.
            for device, state in zip(self._gpus, gpus, strict=False):
                torch.cuda.set_rng_state(state, device)
        parameters = list(self.network.parameters())
        for batch in order.split(self.config.batch_size)[self._batches : last]:
            inputs = windows.inputs(batch)
            if self.config.market:
                hidden = (torch.rand(len(batch)) < HIDDEN_SHARE).to(self.device)
                inputs[hidden, :, -MARKET_CHANNELS:] = 0.0
            outputs = self.network(inputs)
            batch_loss = loss(
                self.config.likelihood, outputs, windows.volatility[batch], windows.targets[batch]
            )
            self._optimizer.zero_grad()
            batch_loss.backward()
            nn.utils.clip_grad_norm_(parameters, self.config.grad_clip_norm)
            self._optimizer.step()
        self._batches = last
        self._generators = [torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in self._gpus)]

    def _validate(self) -> None:
        windows = self._validation_tensors
        outputs = forward_in_batches(self.network, windows)
        validation_loss = float(loss(self.config.likelihood, outputs, windows.volatility, windows.targets))
        if not math.isfinite(validation_loss):
            raise TrainingError(
                f"validation loss is {validation_loss} after epoch {self.position:g}: training diverged; "
                f"lower `learning_rate` (now {self.config.learning_rate:g})"
            )
        if not self._batches and validation_loss < self._best_end_loss:
            self._best_end, self._best_end_loss = self.epoch, validation_loss
        if validation_loss < self.best_loss:
            self.best_loss, self.best_epoch = validation_loss, self.position
            self._best_state = _copy_state(self.network)
            self._best_outputs = outputs.cpu().numpy()

    def evaluate(self, part: Part = "validation") -> Evaluation:
        """Score the best state so far on the rows of ``part``; of a panel, in the mean over its series."""
        if part != "validation":
            windows = self._windows(part)
            best = build_network(self.config).to(self.device)
            best.load_state_dict(self._best_state)
            with threads(self.config.threads):
                outputs = forward_in_batches(best, WindowTensors(Windows.join(windows), self.device)).cpu()
            scores = self.calibration_scores()
            seen = Seen.by_one(outputs.numpy(), windows, self._encodings)
            return self._evaluation(part, [each.forecasts(scores) for each in seen])
        if self._scored is None or self._scored[0] != self.best_epoch:
            self._scored = self.best_epoch, self._evaluation(part, cross_calibrated(self._seen))
        return self._scored[1]

    def _evaluation(self, part: Part, forecasts: Sequence[Forecasts]) -> Evaluation:
        return evaluation_of(
            self._prepared,
            [
                evaluate_forecasts(series.rows(part, self.config.sequence_length), each)
                for series, each in zip(self._parts, forecasts, strict=True)
            ],
        )

    @property
    def _seen(self) -> list[Seen]:
        return Seen.by_one(self._best_outputs, self._validation, self._encodings)

    def calibration_scores(self) -> Array:
        """The best state's calibration scores on the validation rows."""
        return joined_scores(self._seen)

    def best_member(self) -> Member:
        """The best state so far as a member of a model."""
        return Member(
            model_state=self.best_state(),
            config=self.config,
            recursions=self._encodings[0].recursions,
            best_epoch=self.best_epoch,
        )

    def best_state(self) -> dict[str, Tensor]:
        """The weights with the lowest validation loss so far, on the CPU."""
        return {name: value.cpu() for name, value in self._best_state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that another process needs to continue, as plain values and tensors."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best_state": self._best_state,
            "best_outputs": torch.from_numpy(self._best_outputs),
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "epoch": self.epoch,
            "best_end": self._best_end,
            "best_end_loss": self._best_end_loss,
            "batches": self._batches,
            "generators": self._generators,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the ``state_dict`` of a trainer with the same series and configuration.

        Raises:
            RuntimeError: when the state belongs to another series or configuration.
        """
        if state["best_outputs"].shape != self._best_outputs.shape:
            raise RuntimeError("this state is from another version, or of another series")
        self.network.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best_state = {name: value.to(self.device) for name, value in state["best_state"].items()}
        self._best_outputs = state["best_outputs"].numpy()
        self.best_loss = state["best_loss"]
        self.best_epoch = state["best_epoch"]
        self.epoch = state["epoch"]
        # States of version 0.1.0 end with an epoch, and all their validations were at ends.
        self._batches, self._generators = state.get("batches", 0), state.get("generators", [])
        self._best_end = state.get("best_end", state["best_epoch"])
        self._best_end_loss = state.get("best_end_loss", state["best_loss"])
        self._scored = None

    @property
    def _gpus(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    @contextmanager
    def _seeded(self, stage: int) -> Iterator[None]:
        """Seed all random draws of one stage (0: weights, n: epoch n) by the seed and the stage alone.

        An epoch's batches and dropout then do not depend on how training was cut into pieces, on the process it runs
        in, or on other uses of torch's generators in that process.
        """
        with torch.random.fork_rng(devices=self._gpus):
            torch.manual_seed(self.config.seed * STAGES_PER_SEED + stage)
            yield


@dataclass(frozen=True)
class Seen:
    """A model's outputs for the windows of some rows.

    Attributes:
        outputs: shape (n, members, outputs).
        volatility: shape (n, members).
        targets: exact outputs, shape (n,).
        last: the feature's normalized value before each row, shape (n,).
        encoding: the first member's encoding.
    """

    outputs: Outputs
    volatility: NDArray[np.float32]
    targets: NDArray[np.float32]
    last: Array
    encoding: Encoding

    @classmethod
    def by_one(
        cls, outputs: NDArray[np.float32], windows: Sequence[Windows], encodings: Sequence[Encoding]
    ) -> list[Seen]:
        """The outputs (n, outputs) of one network for the windows of several series, one after the other."""
        ends = np.cumsum([len(each) for each in windows])[:-1]
        return [
            cls(own[:, np.newaxis], each.volatility[:, np.newaxis], each.targets, each.last, encoding)
            for own, each, encoding in zip(np.split(outputs, ends), windows, encodings, strict=True)
        ]

    @classmethod
    def by(cls, checkpoint: Checkpoint, prepared: PreparedSeries, part: Part) -> Seen:
        """The outputs of a checkpoint's members for one part of a prepared series."""
        distinct, numbers = views(checkpoint.encodings)
        seen = [prepared.windows(part, encoding) for encoding in distinct]
        with threads(checkpoint.config.threads):
            outputs = networks(checkpoint)([windows.inputs for windows in seen])
        volatility = np.stack([seen[number].volatility for number in numbers], axis=1)
        return cls(outputs, volatility, seen[0].targets, seen[0].last, distinct[0])

    def errors(self) -> Array:
        """Actual minus forecast, shape (n,), in units of the training changes."""
        errors: Array = (self.targets - point_forecasts(self.outputs)).astype(np.float64)
        return errors / self.encoding.output_scale

    def scores(self) -> Array:
        """The model's calibration scores on these rows."""
        likelihood = self.encoding.config.likelihood
        return calibration_scores(likelihood, self.outputs, self.volatility, self.targets)

    def forecasts(self, scores: Array | None) -> Forecasts:
        """Forecasts in price units, with the calibration ``scores`` of other rows."""
        encoding = self.encoding
        found = distribution(encoding.config.likelihood, self.outputs, self.volatility, scores)
        return Forecasts(
            points=encoding.prices(point_forecasts(self.outputs), self.last),
            quantiles=encoding.prices(found.quantiles(PROBABILITIES), self.last) if found else None,
        )

    def part(self, rows: slice) -> Seen:
        """The outputs of some of the rows."""
        return Seen(
            self.outputs[rows], self.volatility[rows], self.targets[rows], self.last[rows], self.encoding
        )


def joined_scores(seen: Sequence[Seen]) -> Array:
    """One model's calibration scores on the rows of several series."""
    return np.sort(np.concatenate([each.scores() for each in seen]))


def cross_calibrated(seen: Sequence[Seen]) -> list[Forecasts]:
    """Forecasts of validation rows, calibrated so that no row's interval comes from its own error.

    Each half of the rows uses the calibration scores of the other; of a panel, those of all series.
    """
    halves = [
        (each.part(slice(middle)), each.part(slice(middle, None)))
        for each, middle in ((each, len(each.targets) // 2) for each in seen)
    ]
    first, second = (joined_scores(half) for half in zip(*halves, strict=True))
    return [Forecasts.join([early.forecasts(second), late.forecasts(first)]) for early, late in halves]


@dataclass(frozen=True)
class TrainResult:
    """The result of ``train``: the checkpoint, its scores on validation and test, its members' epochs, and seconds.

    ``unseen`` holds the test scores of each held-out symbol, forecast as a server does: without the market.
    """

    checkpoint: Checkpoint
    validation: Evaluation
    test: Evaluation
    epochs: tuple[float, ...]
    seconds: float
    unseen: dict[str, Evaluation] = field(default_factory=dict)


def train(
    series: Series | Panel,
    config: TrainConfig,
    *,
    held_out: Collection[str] = (),
    until_epochs: Sequence[float | None] | None = None,
    on_epoch: Callable[[Trainer], None] | None = None,
) -> TrainResult:
    """Train one model on a series or a panel, score it on validation and test, and wrap it as a checkpoint.

    The scores of a panel are means over its symbols (``mean_evaluation``); the checkpoint holds each symbol's.

    Args:
        series: clean prices; of one symbol, ``config.symbol`` and ``config.feature`` are taken from it.
        config: the options of the training.
        held_out: held-out symbols of a panel: the model is not trained on them, only scored on them.
        until_epochs: stop each member after this many epochs at the latest.
        on_epoch: called after each epoch, for progress.

    Raises:
        DataError: when the series is too short for the window length or does not vary.
        TrainingError: when training diverges.
        CheckpointError: when the model of ``config.start_from`` cannot be used.
        UsageError: when it has another network.
    """
    started = time.perf_counter()
    config = config.model_copy(update={"symbol": series.symbol, "feature": series.feature})
    prepared: Prepared
    if isinstance(series, Panel):
        prepared = prepare_panel(series, config, config.sequence_length, held_out=held_out)
    else:
        require_rows(len(series), config.sequence_length, config.train_ratio, config.val_ratio_within_train)
        prepared = prepare(series, config)
    start = load_checkpoint(config.start_from) if config.start_from else None
    if start:
        prepared = with_recursions_of(start, prepared)
    fitted = fit(
        prepared, config, series.provenance, start=start, until_epochs=until_epochs, on_epoch=on_epoch
    )
    seconds = time.perf_counter() - started
    checkpoint, test = scored_on_test(fitted.checkpoint, prepared)
    unseen = {}
    for symbol, part in ({} if isinstance(prepared, PreparedSeries) else prepared.held_out).items():
        with suppress(DataError):  # prices that stand still for a whole window
            forecasts = forecast_unseen(checkpoint, part.without_market(), "test", symbol)
            unseen[symbol] = evaluate_forecasts(part.rows("test", 2), forecasts)
    return TrainResult(checkpoint, fitted.validation, test, fitted.epochs, seconds, unseen)


def scored_on_test(
    checkpoint: Checkpoint, prepared: Prepared, **search: Any
) -> tuple[Checkpoint, Evaluation]:
    """The checkpoint with its scores on the test rows, of a panel with those of each symbol too; and the scores.

    A model that sees the market is also scored without it.

    Args:
        checkpoint: the model.
        prepared: the series, or the panel.
        search: what ``Checkpoint.with_test`` takes of the search that chose the model.
    """
    evaluations = evaluate_each(checkpoint, prepared, "test")
    test = evaluation_of(prepared, evaluations)
    scored = checkpoint.with_test(test, prepared, _by_symbol(checkpoint, evaluations), **search)
    if isinstance(prepared, PreparedPanel):
        scored = scored.model_copy(update={"held_out": tuple(sorted(prepared.held_out))})
    if checkpoint.market:
        blind = evaluate_part(checkpoint, prepared.without_market(), "test").model
        scored = scored.model_copy(update={"metrics_test_without_market": blind})
    return scored, test


@dataclass(frozen=True)
class Fitted:
    """A model fitted without the test rows: its checkpoint, its validation scores, and its members' epochs."""

    checkpoint: Checkpoint
    validation: Evaluation
    epochs: tuple[float, ...]


def fit(
    prepared: Prepared,
    config: TrainConfig,
    provenance: Provenance,
    *,
    start: Checkpoint | None = None,
    until_epochs: Sequence[float | None] | None = None,
    on_epoch: Callable[[Trainer], None] | None = None,
) -> Fitted:
    """Train the members of one model without the test rows, each to its best state, and calibrate it.

    Args:
        prepared: the series, or the panel.
        config: the options of the training.
        provenance: where the series came from.
        start: the model to start from.
        until_epochs: stop each member after this many epochs at the latest.
        on_epoch: called after each epoch, for progress.

    Raises:
        TrainingError: when training diverges.
    """
    prepared = prepared.without_test()
    limits = until_epochs or [None] * config.members
    trained = [
        train_member(prepared, config, number, start=start, until_epoch=limit, on_epoch=on_epoch)
        for number, limit in enumerate(limits)
    ]
    return assemble(prepared, trained, provenance, start)


@dataclass(frozen=True)
class Trained:
    """A trained member: its validation loss, its epochs, and the kind of device it was trained on."""

    member: Member
    val_loss: float
    epochs: float
    device: str


def train_member(
    prepared: Prepared,
    config: TrainConfig,
    number: int,
    *,
    start: Checkpoint | None = None,
    until_epoch: float | None = None,
    on_epoch: Callable[[Trainer], None] | None = None,
) -> Trained:
    """Train member ``number`` of a model; its seed is that of the first, which is member 0, plus the number.

    Raises:
        TrainingError: when training diverges.
        UsageError: when the model to ``start`` from has another network.
    """
    own = config.model_copy(update={"seed": (config.seed + number) % SEEDS})
    trainer = Trainer(prepared, own, member_of(start, own, number) if start else None)
    while not trainer.finished and (until_epoch is None or trainer.position < until_epoch):
        trainer.advance(min(trainer.epoch + 1, until_epoch or math.inf))
        if on_epoch:
            on_epoch(trainer)
    return Trained(trainer.best_member(), trainer.best_loss, trainer.position, trainer.device.type)


def assemble(
    prepared: Prepared,
    trained: Sequence[Trained],
    provenance: Provenance,
    start: Checkpoint | None = None,
) -> Fitted:
    """Make one model of trained members, and calibrate it on the validation rows, of a panel on all of them.

    ``start`` is the model that they started from.
    """
    first, *further = [each.member for each in trained]
    parts = prepared.parts
    checkpoint = Checkpoint.create(
        model_state=first.model_state,
        config=first.config,
        further_members=tuple(further),
        prepared=prepared,
        val_loss_best=float(np.mean([each.val_loss for each in trained])),
        best_epoch=first.best_epoch,
        device=trained[0].device,
        provenance=asdict(provenance),
        started_from=start.sha256 if start else None,
    )
    of_parts = [(_in_units_of(checkpoint, part), part) for part in parts]
    seen = [Seen.by(each, part, "validation") for each, part in of_parts]
    validations = [
        evaluate_forecasts(part.rows("validation", checkpoint.config.sequence_length), forecasts)
        for part, forecasts in zip(parts, cross_calibrated(seen), strict=True)
    ]
    validation = evaluation_of(prepared, validations)
    errors = [Seen.by(each, part, "train").errors() for each, part in of_parts[:: fitting_step(parts)]]
    of_symbols = _by_symbol(checkpoint, validations)
    calibrated = checkpoint.calibrated(joined_scores(seen), validation, of_symbols)
    calibrated = calibrated.model_copy(update={"dynamics": fit_recursion(np.concatenate(errors))})
    with threads(checkpoint.config.threads):
        of_parts = [(_in_units_of(calibrated, part), part) for part in parts]
        stretches = horizon_stretches(of_parts, networks(calibrated))
    finished = calibrated.model_copy(update={"horizon_stretches": stretches})
    return Fitted(finished, validation, tuple(each.epochs for each in trained))


def _by_symbol(checkpoint: Checkpoint, evaluations: Sequence[Evaluation]) -> dict[str, Evaluation]:
    """The scores of each symbol of a model of many; nothing for a model of one."""
    return dict(zip(checkpoint.symbols, evaluations, strict=True)) if checkpoint.symbols else {}


def _in_units_of(checkpoint: Checkpoint, part: PreparedSeries) -> Checkpoint:
    return checkpoint.model_copy(update={"normalization": part.normalization})


def evaluate_part(checkpoint: Checkpoint, prepared: Prepared, part: Part) -> Evaluation:
    """Score a checkpoint and persistence on one part of a prepared series; of a panel, in the mean over its series."""
    return evaluation_of(prepared, evaluate_each(checkpoint, prepared, part))


def evaluate_each(checkpoint: Checkpoint, prepared: Prepared, part: Part) -> list[Evaluation]:
    """Score a checkpoint and persistence on one part of each series."""
    return [
        evaluate_forecasts(series.rows(part, checkpoint.config.sequence_length), forecasts)
        for series, forecasts in zip(prepared.parts, forecast_each(checkpoint, prepared, part), strict=True)
    ]


def forecast_part(checkpoint: Checkpoint, prepared: PreparedSeries, part: Part) -> Forecasts:
    """A checkpoint's forecasts of the target rows of one part of a prepared series; see ``forecast_each``."""
    return forecast_each(checkpoint, prepared, part)[0]


def forecast_each(checkpoint: Checkpoint, prepared: Prepared, part: Part) -> list[Forecasts]:
    """A checkpoint's forecasts of the target rows of one part of each series.

    Intervals are calibrated on the validation rows; of the validation rows themselves, each half on the other.
    """
    seen = [Seen.by(_in_units_of(checkpoint, series), series, part) for series in prepared.parts]
    if part == "validation":
        return cross_calibrated(seen)
    return [each.forecasts(checkpoint.calibration_scores) for each in seen]


def evaluate(checkpoint: Checkpoint, series: Series, part: Part = "test") -> Evaluation:
    """Score a checkpoint and persistence on the same rows, one part of ``series``.

    The series is split by the checkpoint's ratios and normalized by the checkpoint's statistics.

    Raises:
        DataError: when the series lacks a column that the model sees, is too short, or is split at other dates than
            the model's, so that rows it was trained on would be scored as new ones.
    """
    own = checkpoint.of_symbol(series.symbol) if checkpoint.symbols else checkpoint
    config = own.config
    require_rows(len(series), config.sequence_length, config.train_ratio, config.val_ratio_within_train)
    if series.input_columns != config.input_columns:
        raise DataError(
            f"the model sees the input columns {_listed(config.input_columns)}, but the series has "
            f"{_listed(series.input_columns)}; load the series with the same `input_columns`"
        )
    split = split_rows(len(series), config.train_ratio, config.val_ratio_within_train)
    if checkpoint.symbols:
        # The symbols of a panel are split at dates, which are those of its training.
        ends = [series.timeline.parse(str(end)) for end in (own.trained_until, own.validated_until)]
        train_end, validation_end = np.searchsorted(series.dates, np.array(ends), side="right")
        split = Split(int(train_end), int(validation_end), len(series))
    _require_new_rows(own, series, split, part)
    normalization = own.normalization
    prepared = PreparedSeries(normalization.normalize(series.matrix), normalization, split)
    return evaluate_part(own, prepared, part)


def _require_new_rows(checkpoint: Checkpoint, series: Series, split: Split, part: Part) -> None:
    """Check that the part's rows come after those that the model was trained on, and for ``test`` chosen on.

    A file that does not say so was trained on rows whose dates its provenance gives: another series must not end
    earlier.

    Raises:
        DataError: when they do not.
    """
    targets = split.targets(part, checkpoint.config.sequence_length)
    if not targets:
        raise DataError(
            f"this series has no {part} rows: they come after {checkpoint.validated_until}, and it ends at "
            f"{series.timeline.text(series.dates[-1:])[0]}; use a series that ends later"
        )
    first = targets[0]
    begins, ends = series.timeline.text(series.dates[[first, -1]])
    seen = {"train": None, "validation": checkpoint.trained_until, "test": checkpoint.validated_until}[part]
    trained_on = (checkpoint.provenance or {}).get("last_date") if part != "train" else None
    if seen is not None:
        known = moment(begins) > moment(seen)
    else:
        seen, known = trained_on, trained_on is None or moment(ends) >= moment(trained_on)
    if not known:
        served = checkpoint.scored_model is not None
        raise DataError(
            f"the {part} rows of this series begin at {begins}, but the model has seen rows up to {seen}: their scores "
            f"would not be those of new rows; use {'scored_pick.pt, or ' * served}a series that ends later"
        )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _copy_state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
