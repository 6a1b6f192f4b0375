"""Baselines: simple forecasts of the same rows, which a model has to beat.

Each is fitted only on the rows before the scored part; like the model, it then sees every day before the one that it
forecasts. The volatility models come from the package ``arch``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forecast.errors import UsageError
from forecast.model.windows import VOLATILITY_DECAY, PreparedSeries
from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import Forecasts

if TYPE_CHECKING:
    from arch.univariate.base import ARCHModel

Array = NDArray[np.float64]

PERSISTENCE = "persistence"
"""The baseline that every model is compared with: the last price, with the quantiles of all earlier changes."""


def persistence(prepared: PreparedSeries) -> Forecasts:
    """The last price with constant quantiles around it."""
    rows = prepared.rows("test", 2)
    return rows.baseline


def drift(prepared: PreparedSeries) -> Forecasts:
    """The last price moved by the mean change before the scored part; it has no distribution."""
    changes, first, last = _changes(prepared)
    move = float(changes[:first].mean()) * prepared.normalization.feature.change_std
    return Forecasts(points=prepared.normalization.feature.denormalize(last + move))


def ewma(prepared: PreparedSeries) -> Forecasts:
    """The last price, and Student-t changes around it with an exponentially weighted variance (RiskMetrics)."""
    from_arch = _require_arch()
    return _volatility(
        prepared,
        lambda changes: from_arch.ZeroMean(
            changes,
            volatility=from_arch.EWMAVariance(VOLATILITY_DECAY),
            distribution=from_arch.StudentsT(),
            rescale=False,
        ),
    )


def garch(prepared: PreparedSeries) -> Forecasts:
    """GARCH(1,1) with a constant mean and Student-t changes (Bollerslev 1987)."""
    from_arch = _require_arch()
    return _volatility(
        prepared,
        lambda changes: from_arch.ConstantMean(
            changes, volatility=from_arch.GARCH(p=1, q=1), distribution=from_arch.StudentsT(), rescale=False
        ),
    )


BASELINES: dict[str, Callable[[PreparedSeries], Forecasts]] = {
    PERSISTENCE: persistence,
    "drift": drift,
    "EWMA": ewma,
    "GARCH": garch,
}
"""Baselines by name; each forecasts the test rows of a prepared series."""


def _require_arch() -> ModuleType:
    try:
        import arch.univariate
    except ImportError:
        raise UsageError(
            "the baselines EWMA and GARCH need the package arch; install it (pip install arch), or name other "
            "`baselines`"
        ) from None
    return arch.univariate


def _changes(prepared: PreparedSeries) -> tuple[Array, int, Array]:
    """All one-step changes in units of their standard deviation in training; the index of the first test row's change;
    the normalized value before each test row."""
    values = prepared.normalized[:, 0]
    targets = prepared.target_rows("test", 2)
    return (
        np.diff(values) / prepared.normalization.feature.change_std,
        int(targets[0]) - 1,
        values[targets - 1],
    )


def _volatility(prepared: PreparedSeries, build: Callable[[Array], ARCHModel]) -> Forecasts:
    """Fit on the changes before the test rows, then forecast each test row from all before it with fixed parameters."""
    from scipy.special import stdtrit

    changes, first, last = _changes(prepared)
    fitted = build(changes).fit(last_obs=first, disp="off", show_warning=False)
    # Row i forecasts change i + 1 from the changes up to i; the last row forecasts a day after the series.
    ahead = fitted.forecast(horizon=1, start=first - 1, reindex=False)
    mean: Array = ahead.mean.to_numpy(dtype=np.float64)[:-1, 0]
    df = float(fitted.params["nu"])
    # The Student-t distribution of arch has a variance of one.
    scale = np.sqrt(ahead.variance.to_numpy(dtype=np.float64)[:-1, 0] * (df - 2) / df)
    moves = mean[:, np.newaxis] + scale[:, np.newaxis] * stdtrit(df, PROBABILITIES)
    return _forecasts(prepared, mean, moves, last)


def _forecasts(prepared: PreparedSeries, mean: Array, moves: Array, last: Array) -> Forecasts:
    """Price forecasts from mean changes (n,) and quantiles of changes (n, 199), in standard deviations."""
    unit = prepared.normalization.feature.change_std
    return Forecasts(
        points=prepared.normalization.feature.denormalize(last + mean * unit),
        quantiles=prepared.normalization.feature.denormalize(last[:, np.newaxis] + moves * unit),
    )
