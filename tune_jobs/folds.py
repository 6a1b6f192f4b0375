"""Validation folds: rolling origins, over which a search's objectives are means."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from forecast.config import DataConfig
from forecast.errors import DataError
from forecast.model.split import MIN_TARGETS, Part, Split, split_rows
from forecast.model.training import Trainer
from forecast.model.windows import PreparedSeries, prepare
from forecast.prices.series import Series


def earlier_splits(rows: int, folds: int, config: DataConfig, longest_window: int) -> list[Split]:
    """Lay out the folds before the last one, in chronological order; the last fold is the split by the ratios.

    Each fold ends one validation length before the next one, and has no test rows.

    Args:
        rows: number of rows of the series.
        folds: number of folds, the last one included.
        config: the ratios of the split.
        longest_window: the largest ``sequence_length`` that is trained.

    Raises:
        DataError: when the first fold has too few rows to train on.
    """
    last = split_rows(rows, config.train_ratio, config.val_ratio_within_train)
    length = last.validation_end - last.train_end
    splits = [
        Split(last.train_end - back, last.validation_end - back, rows=last.validation_end - back)
        for back in (length * number for number in range(folds - 1, 0, -1))
    ]
    needed = longest_window + MIN_TARGETS
    if splits and splits[0].train_end < needed:
        raise DataError(
            f"`validation_folds` {folds}: the first fold has {max(0, splits[0].train_end)} rows to train on, too few "
            f"for windows of {longest_window}: {needed} rows are needed; use fewer folds, a smaller "
            "`val_ratio_within_train`, a longer history or a shorter window"
        )
    return splits


def prepare_earlier_folds(
    series: Series, folds: int, config: DataConfig, longest_window: int
) -> tuple[PreparedSeries, ...]:
    """Prepare the folds before the last one; each is normalized on its own training rows.

    Raises:
        DataError: when the first fold has too few rows to train on, or a fold's training values do not vary.
    """
    return tuple(
        prepare(series, config, split) for split in earlier_splits(len(series), folds, config, longest_window)
    )


def mean_metrics(folds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the folds."""
    return {name: fmean(metrics[name] for metrics in folds) for name in folds[0]}


class FoldTrainers:
    """The trainers of one configuration, one for each fold, which advance together.

    Attributes:
        last: the trainer of the last fold, which saw the most rows: its model is kept.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        """Take the trainers, at least one, in the order of their folds."""
        self._trainers = trainers
        self.last = trainers[-1]

    @property
    def position(self) -> float:
        """Epochs done in the fold that has trained longest, with the share of the one under way."""
        return max(trainer.position for trainer in self._trainers)

    @property
    def best_loss(self) -> float:
        """Mean of the folds' lowest validation losses."""
        return fmean(trainer.best_loss for trainer in self._trainers)

    @property
    def finished(self) -> bool:
        """Whether every fold's epochs or patience are used up."""
        return all(trainer.finished for trainer in self._trainers)

    def advance(self, until: float) -> None:
        """Train every fold until so many epochs are done, or until finished.

        Raises:
            TrainingError: when a validation loss is not finite.
        """
        for trainer in self._trainers:
            trainer.advance(until)

    def evaluate(self, part: Part) -> dict[str, float]:
        """Return the mean over the folds of each metric of the best states on the rows of ``part``."""
        return mean_metrics([trainer.evaluate(part).model for trainer in self._trainers])

    def state_dict(self) -> dict[str, Any]:
        """Everything that another process needs to continue; ``trainer`` is the last fold's state."""
        *earlier, last = (trainer.state_dict() for trainer in self._trainers)
        return {"trainer": last, "earlier_folds": earlier}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the ``state_dict`` of trainers of the same folds and configuration.

        Raises:
            RuntimeError: when the state belongs to another series or configuration.
        """
        # States of version 0.1.0 have one fold.
        states = [*state.get("earlier_folds", ()), state["trainer"]]
        for trainer, found in zip(self._trainers, states, strict=True):
            trainer.load_state_dict(found)
