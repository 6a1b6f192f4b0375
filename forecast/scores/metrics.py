"""Metrics of forecasts, always compared with persistence on the same rows.

Persistence forecasts the last price, with the distribution of earlier changes around it. A metric without persistence
says nothing: a daily price is close to a random walk, on which persistence is hard to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forecast.registry import Registry
from forecast.scores.distribution import PROBABILITIES, interval_probabilities

Array = NDArray[np.float64]

PRICE_FLOOR = 1e-6
"""Smallest |actual| that an error is divided by, as a share of the mean |training price|."""
LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Levels of the intervals that are scored."""
CONFIDENCE = 0.95
"""Level of the confidence interval around a share of right directions."""


@dataclass(frozen=True)
class Forecasts:
    """One model's forecasts of n rows, in price units.

    Attributes:
        points: point forecasts, shape (n,).
        quantiles: quantiles at ``PROBABILITIES``, shape (n, 199); None for a model with point forecasts only.
        price_floor: smallest |actual| that an error is divided by: one for all rows, or one per row, shape (n,). It
            belongs to the scored rows, which set it (``Rows.floored``); 0 clamps nothing.
    """

    points: Array
    quantiles: Array | None = None
    price_floor: float | Array = 0.0

    @property
    def required_quantiles(self) -> Array:
        """The quantiles, shape (n, 199).

        Raises:
            ValueError: for forecasts without quantiles.
        """
        if self.quantiles is None:
            raise ValueError("these forecasts have no quantiles")
        return self.quantiles

    @classmethod
    def join(cls, parts: Sequence[Forecasts]) -> Forecasts:
        """Join forecasts of consecutive rows; the result has quantiles if all parts have them."""
        quantiles = [part.quantiles for part in parts if part.quantiles is not None]
        return cls(
            np.concatenate([part.points for part in parts]),
            np.concatenate(quantiles) if len(quantiles) == len(parts) else None,
        )


def absolute_errors(actual: Array, forecasts: Forecasts) -> Array:
    """|actual - forecast| of each row, in price units."""
    return np.abs(actual - forecasts.points)


def squared_errors(actual: Array, forecasts: Forecasts) -> Array:
    """(actual - forecast)^2 of each row."""
    return np.square(actual - forecasts.points)


def percentage_errors(actual: Array, forecasts: Forecasts) -> Array:
    """|actual - forecast| of each row in percent of |actual|, which is clamped from below at the forecasts' floor."""
    return 100 * absolute_errors(actual, forecasts) / np.maximum(np.abs(actual), forecasts.price_floor)


_NEAREST = np.diff([0, *((PROBABILITIES[1:] + PROBABILITIES[:-1]) / 2), 1])
"""Share of all probabilities that are nearest to each of ``PROBABILITIES``, shape (199,)."""


def ranked_probability_scores(actual: Array, forecasts: Forecasts) -> Array:
    """Continuous ranked probability score of each row, in price units (Matheson & Winkler 1976).

    It is twice the integral of the quantile loss over all probabilities (Gneiting & Ranjan 2011, eq. 6), in which each
    of ``PROBABILITIES`` stands for all that are nearest to it. For a point forecast it is the absolute error, so it is
    comparable with MAE.

    Raises:
        ValueError: for forecasts without quantiles.
    """
    above = actual[:, np.newaxis] - forecasts.required_quantiles
    losses = np.maximum(PROBABILITIES * above, (PROBABILITIES - 1) * above)
    scores: Array = 2 * losses @ _NEAREST
    return scores


@dataclass(frozen=True)
class Metric:
    """A mean over rows, to be minimized.

    Attributes:
        losses: loss of each row, shape (n,), from actual prices (n,) and forecasts of them.
        of_mean: turns the mean loss into the metric.
        unit: ``%``, for example; empty for price units.
        needs_quantiles: whether it scores the whole distribution, and so needs forecasts with quantiles.
    """

    losses: Callable[[Array, Forecasts], Array]
    of_mean: Callable[[float], float] = float
    unit: str = ""
    needs_quantiles: bool = False

    def __call__(self, actual: Array, forecasts: Forecasts) -> float:
        """The metric over all rows."""
        return float(self.of_mean(float(np.mean(self.losses(actual, forecasts)))))


METRICS: Registry[Metric] = Registry(
    "metric",
    "forecast.metrics",
    {
        "MAE": Metric(absolute_errors),
        "RMSE": Metric(squared_errors, of_mean=lambda mean: float(np.sqrt(mean))),
        "MAPE": Metric(percentage_errors, unit="%"),
        "CRPS": Metric(ranked_probability_scores, needs_quantiles=True),
    },
    accepts=Metric,
)
"""Every metric by name; each can be an objective."""


def label(name: str, *, relative: bool = False) -> str:
    """A metric's name with its unit, for titles of tables and plots: ``MAPE %``.

    Args:
        name: the metric.
        relative: whether its values are those of a panel, ratios without a unit.
    """
    return f"{name} {METRICS[name].unit}".rstrip() if name in METRICS and not relative else name


def value_text(value: float, *, relative: bool = False, digits: int = 6) -> str:
    """A price or a score for people.

    Args:
        value: the price or the score.
        relative: whether it is a ratio, such as a panel's score; a ratio has four decimals.
        digits: significant digits of another value: six, because scores of good models often differ only in the fourth.
    """
    if relative:
        return f"{value:.4f}"
    # The general format would give a larger value an exponent.
    return f"{value:,.{digits}g}" if abs(value) < 10**digits - 0.5 else f"{value:,.0f}"


MASE = "MASE"
"""MAE over the mean absolute change of the training prices (Hyndman & Koehler 2006)."""
STILL = 0.1
"""Persistence's MASE below which a series of a panel hardly moves: its ratio to persistence says nothing."""


@dataclass(frozen=True)
class Coverage:
    """Coverage and width of the central intervals of one level.

    Attributes:
        level: share of rows that the intervals should hold.
        coverage: share of rows that they hold.
        width: mean width of the intervals, in price units.
        persistence_coverage: coverage of persistence's intervals.
        persistence_width: mean width of persistence's intervals.
    """

    level: float
    coverage: float
    width: float
    persistence_coverage: float
    persistence_width: float


@dataclass(frozen=True)
class Direction:
    """Share of rows on which the price moved in the forecast direction from the last price.

    Attributes:
        accuracy: the share; None where no row counts.
        low: lower end of its binomial confidence interval of 95 %.
        high: upper end.
        rows: rows on which both the price and the forecast moved.
    """

    accuracy: float | None
    low: float | None
    high: float | None
    rows: int


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model and of persistence on the same rows, by name, and the skill of the model.

    ``skill`` is ``1 - model / persistence``: above zero the model is better; None where persistence is exact.
    ``intervals`` is empty for a model with point forecasts only.
    """

    model: dict[str, float]
    persistence: dict[str, float]
    skill: dict[str, float | None]
    rows: int
    intervals: tuple[Coverage, ...] = ()
    direction: Direction | None = None

    @property
    def still(self) -> bool:
        """Whether the price hardly moves in these rows (``STILL``)."""
        return self.persistence.get(MASE, 1.0) < STILL


@dataclass(frozen=True)
class Rows:
    """The prices of n rows, and persistence's forecasts of them.

    Attributes:
        actual: prices, shape (n,), n >= 1.
        previous: prices one row before each, shape (n,): persistence's point forecasts.
        persistence: quantiles of persistence, shape (n, 199); None leaves distributions unscored.
        naive_mae: MASE's divisor, the mean absolute change of the training prices: one for all rows, or one per row,
            shape (n,); None leaves MASE out.
        price_floor: ``PRICE_FLOOR`` of the mean |training price|, as ``Forecasts.price_floor``.
    """

    actual: Array
    previous: Array
    persistence: Array | None = None
    naive_mae: float | Array | None = None
    price_floor: float | Array = 0.0

    @property
    def baseline(self) -> Forecasts:
        """Persistence's forecasts."""
        return Forecasts(self.previous, self.persistence)

    def floored(self, forecasts: Forecasts) -> Forecasts:
        """Forecasts of these rows with their price floor, as metrics of relative errors need them."""
        return replace(forecasts, price_floor=self.price_floor)

    def losses(self, metric: str, forecasts: Forecasts) -> Array:
        """Loss of each row by the metric of that name, shape (n,)."""
        return METRICS[metric].losses(self.actual, self.floored(forecasts))


def evaluate_forecasts(rows: Rows, forecasts: Forecasts) -> Evaluation:
    """Score forecasts against the actual prices and against persistence.

    Distributions are scored where both the model and persistence have quantiles.
    """
    intervals: tuple[Coverage, ...] = ()
    if forecasts.quantiles is not None and rows.persistence is not None:
        intervals = _intervals(rows.actual, forecasts.quantiles, rows.persistence)
    scored = {name: metric for name, metric in METRICS.items() if intervals or not metric.needs_quantiles}
    floored, baseline = rows.floored(forecasts), rows.floored(rows.baseline)
    model = {name: metric(rows.actual, floored) for name, metric in scored.items()}
    persistence = {name: metric(rows.actual, baseline) for name, metric in scored.items()}
    if rows.naive_mae is not None:
        for metrics, of in ((model, floored), (persistence, baseline)):
            metrics[MASE] = float(np.mean(absolute_errors(rows.actual, of) / rows.naive_mae))
    skill = {name: 1 - model[name] / persistence[name] if persistence[name] > 0 else None for name in model}
    return Evaluation(
        model=model,
        persistence=persistence,
        skill=skill,
        rows=len(rows.actual),
        intervals=intervals,
        direction=_direction(rows, forecasts.points),
    )


def mean_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of a panel: that of each series relative to persistence's, in the mean over the series.

    Every metric is the mean of the ratios to persistence's on the same rows, so that nothing adds prices in different
    units; persistence's own are one. Widths of intervals are ratios too. A series that hardly moves in these rows
    (``STILL``) is left out of the means: its ratio would outweigh all others.
    """
    moving = [each for each in evaluations if not each.still] or list(evaluations)
    first = moving[0]

    def ratio(above: Sequence[float], below: Sequence[float]) -> float:
        ratios = [one / other for one, other in zip(above, below, strict=True) if other > 0]
        return float(np.mean(ratios)) if ratios else float("nan")

    model = {
        name: ratio([each.model[name] for each in moving], [each.persistence[name] for each in moving])
        for name in first.model
    }
    intervals = []
    for of_level in zip(*(each.intervals for each in moving), strict=True):
        widths = ratio([each.width for each in of_level], [each.persistence_width for each in of_level])
        covered = float(np.mean([each.coverage for each in of_level]))
        naive = float(np.mean([each.persistence_coverage for each in of_level]))
        intervals.append(Coverage(of_level[0].level, covered, widths, naive, 1.0))
    return Evaluation(
        model=model,
        persistence=dict.fromkeys(model, 1.0),
        skill={name: 1 - value for name, value in model.items()},
        rows=sum(each.rows for each in evaluations),
        intervals=tuple(intervals),
    )


def interval_bounds(quantiles: Array, level: float) -> tuple[Array, Array]:
    """Lower and upper bounds (n,) of central intervals from quantiles (n, 199) at ``PROBABILITIES``.

    Args:
        quantiles: increasing along the second axis.
        level: level of the intervals; the probabilities of its bounds must be among ``PROBABILITIES``.
    """
    low, high = np.searchsorted(PROBABILITIES, interval_probabilities([level]) - 1e-9)
    return quantiles[:, low], quantiles[:, high]


def coverage(actual: Array, quantiles: Array, level: float) -> tuple[float, float]:
    """Share of rows in the central interval of a level, and its mean width in price units.

    Args:
        actual: shape (n,).
        quantiles: quantiles at ``PROBABILITIES``, shape (n, 199).
        level: level of the intervals; the probabilities of its bounds must be among ``PROBABILITIES``.
    """
    lower, upper = interval_bounds(quantiles, level)
    inside = (lower <= actual) & (actual <= upper)
    return float(inside.mean()), float((upper - lower).mean())


def _intervals(actual: Array, quantiles: Array, persistence: Array) -> tuple[Coverage, ...]:
    return tuple(
        Coverage(level, *coverage(actual, quantiles, level), *coverage(actual, persistence, level))
        for level in LEVELS
    )


def _direction(rows: Rows, points: Array) -> Direction:
    forecast, actual = np.sign(points - rows.previous), np.sign(rows.actual - rows.previous)
    moved = (forecast != 0) & (actual != 0)
    count, right = int(moved.sum()), int((moved & (forecast == actual)).sum())
    if not count:
        return Direction(None, None, None, 0)
    low, high = binomial_interval(right, count)
    return Direction(right / count, low, high, count)


def binomial_interval(successes: int, trials: int) -> tuple[float, float]:
    """Exact interval of ``CONFIDENCE`` for a binomial share (Clopper & Pearson 1934); trials >= 1."""
    # Imported here because it takes a tenth of a second, which forecasts need not wait for.
    from scipy.special import betaincinv

    tail = (1 - CONFIDENCE) / 2
    failures = trials - successes
    low = betaincinv(successes, failures + 1, tail) if successes else 0.0
    high = betaincinv(successes + 1, failures, 1 - tail) if failures else 1.0
    return float(low), float(high)


def probability_integral_transform(actual: Array, quantiles: Array) -> Array:
    """Place of each actual price in its forecast distribution, in [0, 1]; uniform for a calibrated forecast.

    See Dawid 1984. Quantiles (n, 199) are at ``PROBABILITIES``, so places come in steps of half a percent.
    """
    below = (quantiles < actual[:, np.newaxis]).sum(axis=1)
    places: Array = (below + 0.5) / (len(PROBABILITIES) + 1)
    return places
