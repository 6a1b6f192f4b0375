"""Baselines: simple forecasts of the same rows, which a model has to beat.

Each is fitted once, only on the rows before the scored part; like the model, it then sees every row before the one that
it forecasts. A series without a scored part is forecast from its last row, after a fit on all rows. The volatility
models come from the package ``arch``. One step ahead their quantiles are exact; for more steps they come from paths,
simulated as the model's are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from forecast.backtest.horizons import ByHorizon, first_steps, persistence_ahead
from forecast.backtest.settings import BacktestSettings, Baseline
from forecast.config import TrainConfig
from forecast.errors import DataError, UsageError
from forecast.model.forecaster import PATH_SEED, SCORED_AT_A_TIME, SCORED_PATHS, paths
from forecast.model.normalization import sees_range
from forecast.model.volatility import CONSTANT, RISKMETRICS_DECAY, Recursion
from forecast.model.windows import PreparedSeries, range_variances
from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import Forecasts

if TYPE_CHECKING:
    from arch.univariate.base import ARCHModel

Array = NDArray[np.float64]

PERSISTENCE = "persistence"
"""The baseline that every model is compared with: the last price, with the quantiles of all earlier changes."""
WEEK, MONTH = 5, 22
"""Number of bars whose mean ranges HAR sees beside the last one (Corsi 2009, eq. 9)."""
FAILED = 0.1
"""Log-likelihood per change by which a failed fit is below that of a normal distribution."""
DF_RANGE = (2.05, 500.0)
"""Degrees of freedom among which HAR's are found."""


def persistence(prepared: PreparedSeries, horizons: Sequence[int]) -> ByHorizon:
    """The last price with constant quantiles around it."""
    return {horizon: persistence_ahead(prepared, horizon) for horizon in horizons}


def drift(prepared: PreparedSeries, horizons: Sequence[int]) -> ByHorizon:
    """The last price moved by the mean change before the scored part at each step; it has no distribution."""
    known = _Changes.of(prepared)
    return {horizon: known.forecasts(horizon, known.mean) for horizon in horizons}


def ewma(prepared: PreparedSeries, horizons: Sequence[int]) -> ByHorizon:
    """The last price, and Student-t changes around it with an exponentially weighted variance (RiskMetrics).

    Its forecast of the variance is the same for every step.
    """
    from arch.univariate import EWMAVariance, StudentsT, ZeroMean

    def build(changes: Array) -> ARCHModel:
        volatility = EWMAVariance(RISKMETRICS_DECAY)
        return ZeroMean(changes, volatility=volatility, distribution=StudentsT(), rescale=False)

    return _fitted_by_arch(prepared, build).forecasts(horizons)


def garch(prepared: PreparedSeries, horizons: Sequence[int]) -> ByHorizon:
    """GARCH(1,1) with a constant mean and Student-t changes (Bollerslev 1987)."""
    from arch.univariate import GARCH, ConstantMean, StudentsT

    def build(changes: Array) -> ARCHModel:
        return ConstantMean(changes, volatility=GARCH(p=1, q=1), distribution=StudentsT(), rescale=False)

    return _fitted_by_arch(prepared, build).forecasts(horizons)


def gjr(prepared: PreparedSeries, horizons: Sequence[int]) -> ByHorizon:
    """GARCH in which falls count more (Glosten, Jagannathan & Runkle 1993), with Hansen's skewed t changes."""
    from arch.univariate import GARCH, ConstantMean, SkewStudent

    def build(changes: Array) -> ARCHModel:
        volatility = GARCH(p=1, o=1, q=1)
        return ConstantMean(changes, volatility=volatility, distribution=SkewStudent(), rescale=False)

    return _fitted_by_arch(prepared, build).forecasts(horizons)


def har(prepared: PreparedSeries, horizons: Sequence[int]) -> ByHorizon:
    """Variances from the last bar's range and the mean ranges of a week and a month (HAR; Corsi 2009).

    The regression gives the variance of the bar's range; one factor makes it that of changes from close to close
    (Hansen & Lunde 2005). Changes are Student-t around a constant mean, and the variance is the same for every step.

    Raises:
        UsageError: when the columns do not hold the bar's range.
    """
    from arch.univariate import StudentsT
    from scipy.optimize import minimize_scalar

    known = _Changes.of(prepared)
    found = range_variances(prepared.normalized[np.newaxis], prepared.normalization)
    if found is None:
        raise UsageError(
            "the baseline HAR needs the bar's range; add High and Low (and Open) to `input_columns` beside the feature "
            "Close, or name other `baselines`"
        )
    (ranges,) = found
    # Each month of ranges is followed by the change that it forecasts, the last one by a change after the series.
    months = np.lib.stride_tricks.sliding_window_view(ranges, MONTH)
    predictors = np.stack(
        [np.ones(len(months)), months[:, -1], months[:, -WEEK:].mean(axis=1), months.mean(axis=1)], axis=1
    )
    before = known.first - MONTH
    weights, *_ = np.linalg.lstsq(predictors[:before], ranges[MONTH : known.first])
    # A regression may forecast a variance below zero, or one far beyond all that was seen.
    seen = ranges[: known.first]
    expected = np.clip(predictors @ weights, seen[seen > 0].min(), seen.max())
    residuals = known.changes[MONTH : known.first] - known.mean
    variances = expected * float(np.square(residuals).mean() / expected[:before].mean())
    shape = minimize_scalar(
        lambda df: -float(StudentsT().loglikelihood([df], residuals, variances[:before])), bounds=DF_RANGE
    )
    ahead = variances[before : before + len(known.last)]
    fitted = _Volatility(known, known.mean, ahead, SkewedT(float(shape.x)), CONSTANT)
    return fitted.forecasts(horizons)


BASELINES: dict[str, Callable[[PreparedSeries, Sequence[int]], ByHorizon]] = {
    PERSISTENCE: persistence,
    "drift": drift,
    "EWMA": ewma,
    "GARCH": garch,
    "GJR": gjr,
    "HAR": har,
}
"""Baselines by name; each forecasts the test rows of a prepared series at each horizon.

A series without test rows is forecast from its last row; a fit that failed then raises ``DataError``.
"""


def chosen_baselines(settings: BacktestSettings, config: TrainConfig) -> tuple[Baseline, ...]:
    """Names of a backtest's baselines beside persistence; unless they are named, all that the columns allow."""
    if settings.baselines is not None:
        return settings.baselines
    has_range = sees_range(config.input_columns, config.feature)
    return tuple(name for name in get_args(Baseline) if name != "HAR" or has_range)


@dataclass(frozen=True)
class _Changes:
    """One-step changes of a series, in units of their standard deviation in training.

    Attributes:
        prepared: the series.
        changes: shape (rows - 1,).
        first: index of the first test row's change, or of the first one after the series.
        last: the normalized value before each of the ``first_steps``, shape (n,).
    """

    prepared: PreparedSeries
    changes: Array
    first: int
    last: Array

    @classmethod
    def of(cls, prepared: PreparedSeries) -> _Changes:
        """The changes of a prepared series."""
        values, targets = prepared.normalized[:, 0], first_steps(prepared, 1)
        changes = np.diff(values) / prepared.normalization.feature.change_std
        return cls(prepared, changes, int(targets[0]) - 1, values[targets - 1])

    @property
    def mean(self) -> float:
        """Mean change before the test rows."""
        return float(self.changes[: self.first].mean())

    def forecasts(self, horizon: int, mean: float, moves: Array | None = None) -> Forecasts:
        """The last prices moved by the mean change at each step, and quantiles of moves (n, 199) around that."""
        feature = self.prepared.normalization.feature
        last = self.last[: len(first_steps(self.prepared, horizon))]
        points, quantiles = last + horizon * mean * feature.change_std, None
        if moves is not None:
            quantiles = feature.denormalize(points[:, np.newaxis] + moves[: len(last)] * feature.change_std)
        return Forecasts(feature.denormalize(points), quantiles)


@dataclass(frozen=True)
class SkewedT:
    """Hansen's skewed t distribution (1994, eq. 10), with a mean of zero and a variance of one.

    Attributes:
        df: degrees of freedom, above 2.
        skew: between -1 and 1; 0 is Student's t distribution.
    """

    df: float
    skew: float = 0.0

    def quantiles(self, probabilities: Array) -> Array:
        """Quantiles (k,) at probabilities (k,)."""
        from scipy.special import stdtrit

        below = probabilities < (1 - self.skew) / 2
        side = np.where(below, 1 - self.skew, 1 + self.skew)
        standard = stdtrit(self.df, np.where(below, probabilities / side, 1 - (1 - probabilities) / side))
        return self._standardized(side * standard)

    def draws(self, generator: np.random.Generator, shape: tuple[int, int]) -> Array:
        """Draws of that shape (n, paths)."""
        sizes = np.abs(generator.standard_t(self.df, shape))
        falls = generator.random(shape) < (1 - self.skew) / 2
        return self._standardized(np.where(falls, (self.skew - 1) * sizes, (1 + self.skew) * sizes))

    def _standardized(self, values: Array) -> Array:
        """Values of Student's t distribution, each side of it widened, with a mean of zero and a variance of one."""
        df, skew = self.df, self.skew
        log_density = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(math.pi * (df - 2)) / 2
        mean = 4 * skew * math.exp(log_density) * (df - 2) / (df - 1)
        standardized: Array = (math.sqrt((df - 2) / df) * values - mean) / math.sqrt(
            1 + 3 * skew**2 - mean**2
        )
        return standardized


@dataclass(frozen=True)
class _Volatility:
    """A fitted volatility model.

    Attributes:
        known: the changes that it was fitted on, and those of the test rows.
        mean: the mean change.
        variances: variance of the change of each of the ``first_steps``, from all rows before it, shape (n,).
        shape: distribution of changes around the mean, in units of their standard deviation.
        dynamics: recursion of the variance beyond the first step.
    """

    known: _Changes
    mean: float
    variances: Array
    shape: SkewedT
    dynamics: Recursion

    def forecasts(self, horizons: Sequence[int]) -> ByHorizon:
        """Forecasts at each horizon."""
        spreads = np.sqrt(self.variances)
        moves = {1: spreads[:, np.newaxis] * self.shape.quantiles(PROBABILITIES)}
        if horizons[-1] > 1:
            moves |= self._simulated(spreads, horizons)
        return {horizon: self.known.forecasts(horizon, self.mean, moves[horizon]) for horizon in horizons}

    def _simulated(self, spreads: Array, horizons: Sequence[int]) -> dict[int, Array]:
        """Quantiles (n, 199) of the sums of changes around the mean, at each horizon beyond one step."""
        found: dict[int, list[Array]] = {horizon: [] for horizon in horizons if horizon > 1}
        for start in range(0, len(spreads), SCORED_AT_A_TIME):
            generator = np.random.default_rng(PATH_SEED)
            some = spreads[start : start + SCORED_AT_A_TIME]
            drawn = paths(some, self.shape.draws, self.dynamics, generator, SCORED_PATHS)
            for step, sums in enumerate(itertools.islice(drawn, horizons[-1]), 1):
                if step in found:
                    found[step].append(np.quantile(sums, PROBABILITIES, axis=1).T)
        return {horizon: np.concatenate(parts) for horizon, parts in found.items()}


def _fitted_by_arch(prepared: PreparedSeries, build: Callable[[Array], ARCHModel]) -> _Volatility:
    """Fit on the changes before the test rows; with fixed parameters, each variance is from all rows before."""
    known = _Changes.of(prepared)
    fitted = build(known.changes).fit(last_obs=known.first, disp="off", show_warning=False)
    # Row i forecasts change i + 1 from the changes up to i; the last row forecasts a day after the series.
    ahead = fitted.forecast(horizon=1, start=known.first - 1, reindex=False)
    parameters = {str(name): float(value) for name, value in fitted.params.items()}
    dynamics = CONSTANT
    if "omega" in parameters:
        dynamics = Recursion(
            omega=parameters["omega"],
            alpha=parameters["alpha[1]"],
            gamma=parameters.get("gamma[1]", 0.0),
            beta=parameters["beta[1]"],
            history=known.first,
        )
        # Of test rows, the scores show a failed fit.
        if known.first == len(known.changes):
            _require_fitted(known.changes, float(fitted.loglikelihood))
    return _Volatility(
        known=known,
        mean=parameters.get("mu", 0.0),
        variances=ahead.variance.to_numpy(dtype=np.float64)[: len(known.last), 0],
        # The Student-t distribution's parameter is nu, the skewed one's are eta and lambda.
        shape=SkewedT(parameters.get("nu") or parameters["eta"], parameters.get("lambda", 0.0)),
        dynamics=dynamics,
    )


def _require_fitted(changes: Array, log_likelihood: float) -> None:
    """Check that a fit to changes (n,) found a maximum, whatever the optimizer says of it.

    A normal distribution with a constant variance is next to one of the models among which the maximum is sought.

    Raises:
        DataError: when the fit is far below it.
    """
    normal = -(math.log(2 * math.pi * float(changes.var())) + 1) / 2
    if not log_likelihood / len(changes) > normal - FAILED:
        raise DataError("the fit failed: a constant variance is more likely than what it found")
