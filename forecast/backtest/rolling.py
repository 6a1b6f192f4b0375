"""Rolling-origin backtest: a configuration is trained again at each of many origins and its forecasts are scored.

Every fold fits everything (normalization, weights, intervals) only on the rows before its origin and is scored on the
rows after it (Tashman 2000, "Out-of-sample tests of forecasting accuracy").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.backtest.baselines import BASELINES, PERSISTENCE
from forecast.backtest.settings import FOLD_SHARE, BacktestSettings
from forecast.backtest.significance import clark_west, diebold_mariano
from forecast.config import TrainConfig
from forecast.errors import DataError
from forecast.model.network import ARCHITECTURES
from forecast.model.split import MIN_TARGETS, Split
from forecast.model.training import fit, forecast_part
from forecast.model.windows import PreparedSeries, prepare
from forecast.prices.series import Series
from forecast.prices.timeline import Timeline
from forecast.scores.metrics import METRICS, Evaluation, Forecasts, Rows, evaluate_forecasts

Array = NDArray[np.float64]

COMPARED = ("MAE", "CRPS")
"""Metrics on which the model is compared with each baseline."""


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
        DataError: when the first fold has too few rows to train on.
    """
    each = settings.fold_rows or max(1, int(rows * FOLD_SHARE))
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
    if (
        start < 1
        or min(split.train_end - config.sequence_length, split.validation_end - split.train_end) < MIN_TARGETS
    ):
        raise DataError(
            f"{settings.folds} folds of {each} rows leave {max(0, start)} of {rows} rows before the first fold, too "
            f"few to train on windows of {config.sequence_length}; use fewer folds or rows per fold, or a shorter "
            "window"
        )
    return folds


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
    """One training run: a fold with one seed."""

    fold: Fold
    config: TrainConfig

    def on(self, device: str) -> FoldTask:
        """The same training run on another device."""
        return replace(self, config=self.config.model_copy(update={"device": device}))


def run_task(series: Series, task: FoldTask) -> Forecasts:
    """Train on the rows before the fold's origin and forecast each of its scored rows from the rows before that row."""
    prepared = prepare_fold(series, task.config, task.fold)
    checkpoint, _ = fit(prepared, task.config, series.provenance)
    return forecast_part(checkpoint, prepared, "test")


@dataclass(frozen=True)
class FoldResult:
    """A fold's scored rows, and the forecasts of the model and of the baselines.

    Attributes:
        fold: the row boundaries.
        dates: dates of the scored rows, shape (n,).
        rows: actual prices of the scored rows, and the forecasts of persistence.
        scaled: actual values, persistence's and each seed's point forecasts; see ``on_models_scale``.
        models: forecasts of each seed.
        baselines: forecasts of each baseline by name, persistence's first.
    """

    fold: Fold
    dates: NDArray[np.datetime64]
    rows: Rows
    scaled: Array
    models: list[Forecasts]
    baselines: dict[str, Forecasts]


@dataclass(frozen=True)
class Comparison:
    """A test of a model against a baseline on the same rows.

    Attributes:
        metric: name of the metric whose losses are compared.
        ratio: the model's metric over the baseline's; None where the baseline is exact.
        statistic: the test's statistic; for Diebold-Mariano, below zero where the model is better.
        p_value: two-sided for Diebold-Mariano, one-sided for Clark-West.
    """

    baseline: str
    test: str
    metric: str
    ratio: float | None
    statistic: float
    p_value: float


@dataclass(frozen=True)
class Scores:
    """The metrics of the model over its seeds, and the metrics of persistence.

    Attributes:
        mean: mean of each metric over the seeds.
        std: standard deviation of each metric over the seeds; 0 for one seed.
        persistence: persistence's metrics.
        evaluations: the evaluation of each seed.
    """

    mean: dict[str, float]
    std: dict[str, float]
    persistence: dict[str, float]
    evaluations: list[Evaluation]


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
    def rows(self) -> Rows:
        """The scored rows of all folds."""
        parts = [result.rows for result in self.results]
        return Rows(
            actual=np.concatenate([part.actual for part in parts]),
            previous=np.concatenate([part.previous for part in parts]),
            persistence=_joined([part.persistence for part in parts]),
            naive_mae=_joined([np.full(len(part.actual), part.naive_mae) for part in parts]),
            price_floor=_joined([np.full(len(part.actual), part.price_floor) for part in parts]),
        )

    @property
    def dates(self) -> NDArray[np.datetime64]:
        """Dates of the scored rows."""
        return np.concatenate([result.dates for result in self.results])

    def model(self, seed: int) -> Forecasts:
        """The forecasts of one seed in all folds."""
        return Forecasts.join([result.models[seed] for result in self.results])

    @property
    def baselines(self) -> dict[str, Forecasts]:
        """The forecasts of each baseline in all folds."""
        names = self.results[0].baselines
        return {name: Forecasts.join([result.baselines[name] for result in self.results]) for name in names}

    def scores(self, number: int | None = None) -> Scores:
        """Scores of fold ``number``, or of all folds together."""
        if number is None:
            return _scores(self.rows, [self.model(seed) for seed in range(self.seeds)])
        return _scores(self.results[number].rows, self.results[number].models)

    def comparisons(self) -> list[Comparison]:
        """Test the model against each baseline over all folds; a row's loss is the mean of the seeds' losses."""
        rows, models = self.rows, [self.model(seed) for seed in range(self.seeds)]
        found = [self._clark_west()]
        ours = {
            metric: np.mean([rows.losses(metric, model) for model in models], axis=0) for metric in COMPARED
        }
        for name, forecasts in self.baselines.items():
            for metric, losses in ours.items():
                if METRICS[metric].needs_quantiles and forecasts.quantiles is None:
                    continue
                theirs = rows.losses(metric, forecasts)
                tested = diebold_mariano(losses, theirs)
                found.append(Comparison(name, "Diebold-Mariano", metric, _ratio(losses, theirs), *tested))
        return found

    def _clark_west(self) -> Comparison:
        scaled = np.concatenate([result.scaled for result in self.results], axis=1)
        actual, previous, models = scaled[0], scaled[1], scaled[2:]
        ratio = _ratio(np.square(models - actual), np.square(previous - actual))
        return Comparison(PERSISTENCE, "Clark-West", "MSE", ratio, *clark_west(actual, previous, models))


def _ratio(losses: Array, others: Array) -> float | None:
    below = float(others.mean())
    return float(losses.mean()) / below if below > 0 else None


def _joined(parts: Sequence[Any]) -> Array:
    return np.concatenate(parts)


def _scores(rows: Rows, models: Sequence[Forecasts]) -> Scores:
    evaluations = [evaluate_forecasts(rows, forecasts) for forecasts in models]
    names = evaluations[0].model
    values = {name: [evaluation.model[name] for evaluation in evaluations] for name in names}
    std = {name: float(np.std(seen, ddof=1)) if len(seen) > 1 else 0.0 for name, seen in values.items()}
    mean = {name: float(np.mean(seen)) for name, seen in values.items()}
    return Scores(mean, std, evaluations[0].persistence, evaluations)


RunTasks = Callable[[Series, Sequence[FoldTask]], Iterable[Forecasts]]
"""Runs tasks anywhere and yields their forecasts in the tasks' order."""


def run_here(series: Series, tasks: Sequence[FoldTask]) -> Iterable[Forecasts]:
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
        settings: the folds, seeds and baselines.
        run: executes the training runs.
        on_done: called after each training run.

    Raises:
        DataError: when the series is too short for the folds, or a fold's training values do not vary.
        TrainingError: when training diverges.
        UsageError: when a baseline's package is not installed.
    """
    config = config.model_copy(update={"symbol": series.symbol, "feature": series.feature})
    ARCHITECTURES.find(config.network)
    folds = make_folds(len(series), settings, config)
    seeds = [config.model_copy(update={"seed": config.seed + i}) for i in range(settings.seeds)]
    tasks = [FoldTask(fold, seed) for fold in folds for seed in seeds]
    # Baselines come before the long work, so that one that cannot be computed fails at once.
    prepared = [prepare_fold(series, config, fold) for fold in folds]
    baselines = [_baselines(known, settings) for known in prepared]
    forecasts = []
    for done in run(series, tasks):
        forecasts.append(done)
        on_done()
    results = []
    for i, fold in enumerate(folds):
        models = forecasts[i * len(seeds) : (i + 1) * len(seeds)]
        rows = prepared[i].rows("test", config.sequence_length)
        scaled = on_models_scale(prepared[i], rows, [model.points for model in models])
        dates = series.dates[fold.origin : fold.end]
        results.append(FoldResult(fold, dates, rows, scaled, models, baselines[i]))
    return Backtest(results, len(seeds), series.timeline)


def _baselines(prepared: PreparedSeries, settings: BacktestSettings) -> dict[str, Forecasts]:
    return {name: BASELINES[name](prepared) for name in (PERSISTENCE, *settings.baselines)}


def on_models_scale(prepared: PreparedSeries, rows: Rows, points: Sequence[Array]) -> Array:
    """Actual values, persistence's and models' point forecasts (2 + models, n) on the scale of the models' outputs.

    Its unit is the standard deviation of the training changes, so squared errors of calm and of expensive years weigh
    alike.
    """
    prices = np.stack([rows.actual, rows.previous, *points])
    scaling = prepared.normalization.feature
    return scaling.normalize(prices) / scaling.change_std
