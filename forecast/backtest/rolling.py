"""Rolling-origin backtest: a configuration is trained again at each of many origins and its forecasts are scored.

Every fold fits everything (normalization, weights, intervals) only on the rows before its origin and is scored on the
rows after it (Tashman 2000, "Out-of-sample tests of forecasting accuracy"), one and more steps ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from forecast.backtest.baselines import BASELINES, PERSISTENCE, chosen_baselines
from forecast.backtest.horizons import ByHorizon, forecast_ahead, rows_ahead, scored_horizons
from forecast.backtest.scored import Comparison, Scored, Scores, loss_ratio
from forecast.backtest.settings import FOLD_SHARE, BacktestSettings
from forecast.backtest.significance import clark_west
from forecast.config import TrainConfig
from forecast.errors import DataError, UsageError
from forecast.model.network import ARCHITECTURES
from forecast.model.split import MIN_TARGETS, Split
from forecast.model.training import fit
from forecast.model.windows import PreparedSeries, prepare
from forecast.prices.series import Series
from forecast.prices.timeline import Timeline
from forecast.scores.metrics import Forecasts, Rows

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Fold:
    """Rows of one fold: the model is trained on ``[first, origin)`` and scored on ``[origin, end)``."""

    number: int
    first: int
    origin: int
    end: int


def make_folds(rows: int, settings: BacktestSettings, config: TrainConfig) -> list[Fold]:
    """Lay out the folds of a series of ``rows`` rows, in chronological order; the last fold ends at the last row.

    Raises:
        DataError: when the first fold has too few rows to train on, or a fold too few for the longest horizon.
    """
    each = settings.fold_rows or max(1, int(rows * FOLD_SHARE))
    longest = scored_horizons(settings, config)[-1]
    if longest > each:
        raise DataError(
            f"{longest} steps do not fit into folds of {each} rows; name shorter `horizons`, or use more rows per fold "
            "(`fold_rows`)"
        )
    start = rows - settings.folds * each
    folds = [
        Fold(
            number=number,
            first=number * each if settings.window == "sliding" else 0,
            origin=start + number * each,
            end=start + (number + 1) * each,
        )
        for number in range(settings.folds)
    ]
    split = _split(folds[0], config)
    training, validation = split.train_end - config.sequence_length, split.validation_end - split.train_end
    if min(training, validation, start - longest) < MIN_TARGETS:
        raise DataError(
            f"{settings.folds} folds of {each} rows leave {max(0, start)} of {rows} rows before the first fold, too "
            f"few to train on windows of {config.sequence_length} and to know changes of {longest} steps; use fewer "
            "folds or rows per fold, a shorter window, or shorter `horizons`"
        )
    return folds


def require_no_start(config: TrainConfig) -> None:
    """Refuse models that start from another.

    Raises:
        UsageError: naming the option.
    """
    if config.start_from is not None:
        raise UsageError(
            f"`start_from` {config.start_from} cannot be used in a backtest: its model may have seen the days that a "
            "fold is scored on; omit it"
        )


def _require_alone(config: TrainConfig) -> None:
    """Refuse models that need more than a fold's rows.

    Raises:
        UsageError: naming the option.
    """
    require_no_start(config)
    if config.market:
        raise UsageError("`market` cannot be used in a backtest, which has the prices of one symbol; omit it")


def _split(fold: Fold, config: TrainConfig) -> Split:
    known = fold.origin - fold.first
    return Split(
        train_end=int(known * (1 - config.val_ratio_within_train)),
        validation_end=known,
        rows=fold.end - fold.first,
    )


def prepare_fold(series: Series, config: TrainConfig, fold: Fold) -> PreparedSeries:
    """Prepare the fold's rows alone, normalized on its training rows, with its scored rows as the test part.

    Raises:
        DataError: when the training values do not vary.
    """
    return prepare(series.part(slice(fold.first, fold.end)), config, _split(fold, config))


@dataclass(frozen=True)
class FoldTask:
    """One training run: a fold with one seed, and the numbers of steps ahead that are forecast, ascending."""

    fold: Fold
    config: TrainConfig
    horizons: tuple[int, ...] = (1,)

    def on(self, device: str) -> FoldTask:
        """The same training run on another device."""
        return replace(self, config=self.config.model_copy(update={"device": device}))


def run_task(series: Series, task: FoldTask) -> ByHorizon:
    """Train on the rows before the fold's origin, and forecast its scored rows, each from all rows before its origin.

    The origin of a forecast of several steps is that of its first step.
    """
    prepared = prepare_fold(series, task.config, task.fold)
    fitted = fit(prepared, task.config, series.provenance)
    return forecast_ahead(fitted.checkpoint, prepared, task.horizons)


@dataclass(frozen=True)
class FoldResult:
    """A fold's scored rows, and the forecasts of the model and of the baselines.

    Attributes:
        fold: the row boundaries.
        dates: dates of the scored rows, shape (n,).
        scaled: actual values, persistence's and each seed's one-step point forecasts; see ``on_models_scale``.
        ahead: the targets and their forecasts by number of steps.
    """

    fold: Fold
    dates: NDArray[np.datetime64]
    scaled: Array
    ahead: dict[int, Scored]


@dataclass(frozen=True)
class Backtest:
    """All folds of a backtest.

    Attributes:
        results: the result of each fold, in chronological order.
        seeds: number of training runs of each fold.
        timeline: the bars of the series.
    """

    results: list[FoldResult]
    seeds: int
    timeline: Timeline

    @property
    def dates(self) -> NDArray[np.datetime64]:
        """Dates of the scored rows."""
        return np.concatenate([result.dates for result in self.results])

    @cached_property
    def ahead(self) -> dict[int, Scored]:
        """The targets of all folds and their forecasts by number of steps, ascending."""
        return {
            horizon: Scored.join([result.ahead[horizon] for result in self.results])
            for horizon in self.results[0].ahead
        }

    @property
    def rows(self) -> Rows:
        """The scored rows of all folds."""
        return self.ahead[1].rows

    def model(self, seed: int) -> Forecasts:
        """The one-step forecasts of one seed in all folds."""
        return self.ahead[1].models[seed]

    def scores(self, number: int | None = None) -> Scores:
        """Scores one step ahead of fold ``number``, or of all folds together."""
        ahead = self.ahead if number is None else self.results[number].ahead
        return ahead[1].scores()

    def comparisons(self) -> list[Comparison]:
        """Test the model one step ahead against each baseline over all folds."""
        return [self._clark_west(), *self.ahead[1].comparisons()]

    def _clark_west(self) -> Comparison:
        scaled = np.concatenate([result.scaled for result in self.results], axis=1)
        actual, previous, models = scaled[0], scaled[1], scaled[2:]
        ratio = loss_ratio(np.square(models - actual), np.square(previous - actual))
        return Comparison(PERSISTENCE, "Clark-West", "MSE", ratio, *clark_west(actual, previous, models))


RunTasks = Callable[[Series, Sequence[FoldTask]], Iterable[ByHorizon]]
"""Runs tasks anywhere and yields their forecasts in the tasks' order."""


def run_here(series: Series, tasks: Sequence[FoldTask]) -> Iterable[ByHorizon]:
    """Run tasks one after the other, in this process."""
    return (run_task(series, task) for task in tasks)


def backtest(
    series: Series,
    config: TrainConfig,
    settings: BacktestSettings,
    *,
    run: RunTasks = run_here,
    on_done: Callable[[], None] = lambda: None,
) -> Backtest:
    """Train and score every fold with every seed.

    Args:
        series: clean prices.
        config: the configuration, the same in every fold; its ``train_ratio`` is not used.
        settings: the folds, seeds, horizons and baselines.
        run: executes the training runs.
        on_done: called after each training run.

    Raises:
        DataError: when the series is too short for the folds, or a fold's training values do not vary.
        TrainingError: when training diverges.
        UsageError: when a baseline needs columns that the model does not have, or the model starts from another or sees
            the market.
    """
    _require_alone(config)
    config = config.model_copy(update={"symbol": series.symbol, "feature": series.feature})
    ARCHITECTURES.find(config.network)
    folds = make_folds(len(series), settings, config)
    # The members of a model take the seeds from its own on; those of the runs' models must differ.
    seeds = [
        config.model_copy(update={"seed": config.seed + i * config.members}) for i in range(settings.seeds)
    ]
    horizons = scored_horizons(settings, config)
    tasks = [FoldTask(fold, seed, horizons) for fold in folds for seed in seeds]
    # Baselines come before the long work, so that one that cannot be computed fails at once.
    prepared = [prepare_fold(series, config, fold) for fold in folds]
    names = (PERSISTENCE, *chosen_baselines(settings, config))
    baselines = [{name: BASELINES[name](known, horizons) for name in names} for known in prepared]
    forecasts = []
    for done in run(series, tasks):
        forecasts.append(done)
        on_done()
    results = []
    for i, fold in enumerate(folds):
        models = forecasts[i * len(seeds) : (i + 1) * len(seeds)]
        ahead = {
            horizon: Scored(
                horizon,
                rows_ahead(prepared[i], horizon),
                [model[horizon] for model in models],
                {name: found[horizon] for name, found in baselines[i].items()},
            )
            for horizon in horizons
        }
        scaled = on_models_scale(prepared[i], ahead[1].rows, [model.points for model in ahead[1].models])
        results.append(FoldResult(fold, series.dates[fold.origin : fold.end], scaled, ahead))
    return Backtest(results, len(seeds), series.timeline)


def on_models_scale(prepared: PreparedSeries, rows: Rows, points: Sequence[Array]) -> Array:
    """Actual values, persistence's and models' point forecasts (2 + models, n) on the scale of the models' outputs.

    Its unit is the standard deviation of the training changes, so squared errors of calm and of expensive years weigh
    alike.
    """
    prices = np.stack([rows.actual, rows.previous, *points])
    scaling = prepared.normalization.feature
    return scaling.normalize(prices) / scaling.change_std
