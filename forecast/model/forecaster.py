"""The forecaster: a model of one or more members, its forecasts of the next step and of many.

The members' forecasts are averaged, quantile by quantile. Beyond one step, the point forecasts are recursive: each
step takes the forecasts before it as prices. Intervals come from simulated paths: the model's own distribution of the
first step, whose variance a recursion then carries from step to step. The network does not see the drawn paths: it
has not learned to, and its errors would feed on themselves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from forecast.model.card import ModelCard
from forecast.model.likelihood import (
    Outputs,
    Scores,
    conformal_quantile,
    distribution,
    point_forecasts,
    stretch,
)
from forecast.model.split import Part
from forecast.model.volatility import Recursion
from forecast.model.windows import Encoding, PreparedSeries, views
from forecast.scores.distribution import MAIN_LEVEL, Distribution, interval_probabilities

Array = NDArray[np.float64]
Inputs = NDArray[np.float32]

HORIZONS = (1, 5, 10, 20)
"""Numbers of steps whose intervals are calibrated."""
QUANTILE_NOISE = 0.8
"""Variance of the logarithm of the 90 % quantile of n absolute normal errors, times n: 0.09 / (q f(q))^2."""
CALIBRATED_ROWS = 500
"""Most validation rows from which intervals of many steps are calibrated."""
PATHS = 4000
"""Number of paths simulated for each window."""
LEAST_BEYOND = 10
"""Fewest paths beyond each bound of an interval."""
WIDEST_SIMULATED_LEVEL = 1 - 2 * LEAST_BEYOND / PATHS
"""Highest level of intervals beyond one step."""
SCORED_PATHS, SCORED_AT_A_TIME = 1000, 512
"""Number of paths for each of many windows that are scored, and of windows simulated together."""
PATH_SEED = 0
"""Seed of the draws, fixed so that the same window gets the same intervals."""


@dataclass(frozen=True)
class Forecaster:
    """A model ready to forecast normalized rows.

    Rows have shape (n, rows, columns), oldest first, as ``Encoding.encode`` takes them.

    Attributes:
        encodings: each member's.
        run: computes outputs (n, members, outputs) from the inputs of each of the ``views``.
        scores: the model's calibration scores; None leaves a learned distribution as it is.
        dynamics: recursion that carries the variance from one step to the next.
        stretches: factor on the width of intervals by number of steps; without them, that of one step.
    """

    encodings: tuple[Encoding, ...]
    run: Callable[[Sequence[Inputs]], Outputs]
    scores: Scores | None
    dynamics: Recursion
    stretches: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, card: ModelCard, run: Callable[[Sequence[Inputs]], Outputs]) -> Forecaster:
        """The model of a card, whose networks ``run`` computes."""
        return cls(card.encodings, run, card.calibration_scores, card.dynamics, card.horizon_stretches)

    @property
    def rows(self) -> int:
        """Number of rows that a forecast uses."""
        return max(encoding.rows for encoding in self.encodings)

    @property
    def encoding(self) -> Encoding:
        """The first member's encoding; all have the same outputs."""
        return self.encodings[0]

    @cached_property
    def _views(self) -> tuple[list[Encoding], list[int]]:
        return views(self.encodings)

    def inputs(self, normalized: Array) -> tuple[list[Inputs], NDArray[np.float32]]:
        """The inputs of each of the ``views``, and the volatility that each member corrects, (n, members)."""
        distinct, numbers = self._views
        encoded = [encoding.encode(normalized) for encoding in distinct]
        return [inputs for inputs, _ in encoded], np.stack([encoded[number][1] for number in numbers], axis=1)

    def outputs(self, normalized: Array) -> tuple[Outputs, NDArray[np.float32]]:
        """Outputs (n, members, outputs), and the volatility that each member corrects, (n, members)."""
        inputs, volatility = self.inputs(normalized)
        return self.run(inputs), volatility

    def prices(self, normalized: Array, horizon: int) -> Array:
        """Point forecasts (n, horizon), in price units; steps beyond the first do not see the market."""
        rows, prices = normalized, np.empty((len(normalized), horizon))
        for step in range(horizon):
            if step:
                rows = self.followed(rows, prices[:, step - 1])
            outputs, _ = self.outputs(rows)
            prices[:, step] = self.encoding.prices(point_forecasts(outputs), rows[:, -1, 0])
        return prices

    def followed(self, rows: Array, prices: Array) -> Array:
        """The rows from which the step after forecast prices (n,) is forecast; they do not show the market."""
        bars = self.encoding.normalization.following_bars(prices)
        following = self.encoding.with_market(bars[:, np.newaxis])
        return self.encoding.hide_market(np.concatenate([rows, following], axis=1)[:, -self.rows :])

    def distribution(self, normalized: Array) -> Distribution | None:
        """The distributions of the next output; None where the model has none."""
        return distribution(self.encoding.config.likelihood, *self.outputs(normalized), self.scores)

    def quantiles(
        self,
        first: Distribution,
        points: Array,
        probabilities: Array,
        horizons: Sequence[int],
        count: int = PATHS,
    ) -> Array:
        """Normalized quantiles at numbers of steps, shape (n, horizons, k), from simulated paths.

        Args:
            first: distributions of the next output.
            points: normalized point forecasts, shape (n, steps).
            probabilities: shape (k,).
            horizons: numbers of steps, ascending.
            count: number of paths.
        """
        unit = self.encoding.normalization.feature.change_std
        generator = np.random.default_rng(PATH_SEED)
        spread = first.spread / self.encoding.output_scale
        found = []
        drawn = paths(spread, first.draws, self.dynamics, generator, count)
        for step, moves in enumerate(itertools.islice(drawn, horizons[-1]), 1):
            if step in horizons:
                middle, *quantiles = np.quantile(moves, [0.5, *probabilities], axis=1)
                widened = middle + self.stretch(step) * (np.array(quantiles) - middle)
                found.append(points[:, step - 1] + unit * widened)
        return np.stack(found).transpose(2, 0, 1)

    def stretch(self, horizon: int) -> float:
        """The factor on the width of intervals at a number of steps; between calibrated ones, interpolated."""
        if self.stretches:
            return float(np.interp(horizon, list(self.stretches), list(self.stretches.values())))
        if self.scores is None or self.encoding.config.likelihood == "mse":
            return 1.0
        return stretch(self.scores)


@dataclass(frozen=True)
class Ahead:
    """Forecasts of many steps for n rows, normalized, beside what came.

    Attributes:
        horizons: numbers of steps, ascending.
        targets: shape (n, horizons); NaN after the last row of the part.
        points: shape (n, horizons).
        quantiles: shape (n, horizons, k); None for a model without a distribution.
    """

    horizons: tuple[int, ...]
    targets: Array
    points: Array
    quantiles: Array | None


def look_ahead(
    forecaster: Forecaster,
    prepared: PreparedSeries,
    part: Part,
    horizons: Sequence[int],
    probabilities: Array,
    every: int = 1,
    offset: int = 0,
) -> Ahead:
    """Forecast several steps ahead from before each row of a part, which is the first step's target.

    Args:
        forecaster: the model.
        prepared: the series.
        part: the rows.
        horizons: numbers of steps.
        probabilities: those of the quantiles, shape (k,).
        every: forecast only from before every so many rows.
        offset: number of the first of these rows in the part.
    """
    horizons = tuple(sorted(horizons))
    rows = prepared.target_rows(part, forecaster.encoding.config.sequence_length)
    histories = prepared.histories(forecaster.rows, forecaster.encoding)
    feature = forecaster.encoding.normalization.feature
    values = np.concatenate([prepared.normalized[: rows[-1] + 1, 0], np.full(horizons[-1], np.nan)])
    rows = rows[offset::every]
    points, quantiles = [], []
    for start in range(0, len(rows), SCORED_AT_A_TIME):
        history = histories[rows[start : start + SCORED_AT_A_TIME]]
        each = feature.normalize(forecaster.prices(history, horizons[-1]))
        first = forecaster.distribution(history)
        points.append(each[:, np.array(horizons) - 1])
        if first is not None:
            quantiles.append(forecaster.quantiles(first, each, probabilities, horizons, SCORED_PATHS))
    return Ahead(
        horizons,
        np.stack([values[rows + horizon - 1] for horizon in horizons], axis=1),
        np.concatenate(points),
        np.concatenate(quantiles) if quantiles else None,
    )


def horizon_stretches(
    models: Sequence[tuple[ModelCard, PreparedSeries]], run: Callable[[Sequence[Inputs]], Outputs]
) -> dict[int, float]:
    """The factors by which intervals are too narrow on the validation rows, by number of steps.

    Each is the split conformal quantile of the errors at one of ``HORIZONS``, as ``likelihood.stretch``, as far as it
    can be told from one. Empty for models that cannot forecast many steps.

    Args:
        models: the model in the units of each of its series, and the series.
        run: computes its networks.
    """
    card, _ = models[0]
    if card.columns_not_forecast:
        return {}
    length = card.config.sequence_length
    counts = [len(prepared.target_rows("validation", length)) for _, prepared in models]
    every = math.ceil(sum(counts) / CALIBRATED_ROWS)
    bounds_and_middle = np.append(interval_probabilities([MAIN_LEVEL]), 0.5)
    scores = []
    for number, (each, prepared) in enumerate(models):
        forecaster = Forecaster.of(each.model_copy(update={"horizon_stretches": {1: 1.0}}), run)
        # Of a panel, each symbol has other days than the next: the same few would be one or two of the market's.
        offset = number % min(every, counts[number])
        ahead = look_ahead(forecaster, prepared, "validation", HORIZONS, bounds_and_middle, every, offset)
        if ahead.quantiles is None:
            return {}
        lower, upper, middle = np.moveaxis(ahead.quantiles, 2, 0)
        scores.append(np.abs(ahead.targets - middle) / ((upper - lower) / 2))
    found = {}
    for horizon, column in zip(HORIZONS, np.concatenate(scores).T, strict=True):
        known = np.sort(column[~np.isnan(column)])
        if len(known):
            # Errors of several symbols on the same days are no independent evidence: the days count.
            found[horizon] = _trusted(conformal_quantile(known), max(counts) / horizon)
    return found


def _trusted(factor: float, spans: float) -> float:
    """Shrink a factor towards one by its noise (James & Stein 1961, the positive part, of its logarithm).

    Errors of overlapping spans of rows say little more than those of the ``spans`` that do not overlap. Intervals are
    narrowed only where one is three times as far away as noise takes it.
    """
    if factor in (0.0, 1.0):  # errors of zero, of prices that stand still, say nothing of later ones
        return 1.0
    size = math.log(factor)
    noise = QUANTILE_NOISE / spans * (1 if size > 0 else 9)
    return math.exp(size * max(0.0, 1 - noise / size**2))


def paths(
    spread: Array,
    draws: Callable[[np.random.Generator, tuple[int, int]], Array],
    dynamics: Recursion,
    generator: np.random.Generator,
    count: int = PATHS,
) -> Iterator[Array]:
    """Sums of drawn changes after each step, shape (n, count), without end, in units of the training changes.

    Args:
        spread: standard deviation of the first change, shape (n,).
        draws: draws numbers of a shape (n, count) with a mean of zero and a variance of one.
        dynamics: gives the variance of each change from that of the one before and the change itself.
        generator: makes the draws.
        count: number of paths for each of n windows.
    """
    variances = np.repeat(np.square(spread)[:, np.newaxis], count, axis=1)
    sums = np.zeros_like(variances)
    while True:
        changes = np.sqrt(variances) * draws(generator, variances.shape)
        sums = sums + changes
        yield sums
        variances = dynamics.after(variances, changes)
