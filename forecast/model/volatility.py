"""Volatility: simple recursions of the variance of the next change, which the network sees and corrects.

All quantities are in units of the training changes: a change of one is their standard deviation, and a variance of one
is their variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RISKMETRICS_DECAY = 0.94
"""Weight of yesterday's variance in today's: RiskMetrics' value for daily data (J.P. Morgan/Reuters 1996, sec. 5.3)."""
HISTORY = 250
"""Number of changes, about a year of days, from which a variance is computed, whatever the window's length."""
LEAST_VARIANCE = 0.01
"""Smallest variance, a hundredth of the training variance: a price that stands still will move again."""
MOST_PERSISTENT = 0.9995
"""Upper bound of a fitted recursion's persistence: below one, its variance returns to a long-run mean."""
LARGEST_SHARE = 0.4
"""Upper bound of the share of the persistence that new changes have: with more, one change is most of the variance."""
FIRST_PERSISTENCE, FIRST_SHARES = 0.98, (0.05, 0.12)
"""Where the fit starts: the persistence, and, one after the other, the share of it that new changes have."""


@dataclass(frozen=True)
class Recursion:
    """A recursion of the variance v of the next change r.

        v[t + 1] = omega + (alpha + gamma (r[t] < 0)) r[t]^2 + delta g[t] + beta v[t]

    It is that of Glosten, Jagannathan & Runkle (1993), here with ``g``, the variance that the bar's own range shows,
    over ``range_mean``. With ``omega`` and ``gamma`` zero and ``beta`` equal to one minus ``alpha``, it is an
    exponentially weighted mean.

    Attributes:
        history: number of the latest changes over which it runs.
        range_mean: mean range variance of the training rows, which makes ``g`` one in the mean.
        starts_at_training: start from the training variance, whatever the changes are; otherwise from the mean of the
            changes' squares and the training variance, and never go below ``LEAST_VARIANCE``.
    """

    omega: float
    alpha: float
    gamma: float
    beta: float
    history: int
    delta: float = 0.0
    range_mean: float = 1.0
    starts_at_training: bool = False

    def after(self, variances: Array, changes: Array) -> Array:
        """The variances after drawn changes, which have no range, of the same shape."""
        shocks = (self.alpha + self.gamma * (changes < 0)) * np.square(changes)
        following: Array = self.omega + shocks + self.beta * variances
        return following

    @property
    def persistence(self) -> float:
        """Expected share of a variance that remains after one step, for symmetric changes."""
        return self.alpha + self.gamma / 2 + self.delta + self.beta

    def variances(self, changes: Array, ranges: Array | None, steps: int) -> Array:
        """Variances after each of the last ``steps`` changes, shape (n, steps), each from ``history`` changes.

        Args:
            changes: one-step changes, shape (n, k), k >= steps; NaN where not known, before all known ones.
            ranges: range variances of the same bars, shape (n, k); None without a range term.
            steps: number of changes.
        """
        changes = changes[:, 1 - self.history - steps :]
        count = changes.shape[1]
        known = np.isfinite(changes)
        squares = np.where(known, np.square(changes), 0.0)
        in_history = _weights(1.0, count, steps, self.history)
        numbers = known @ in_history
        start = np.ones_like(numbers)
        if not self.starts_at_training:
            start = (1 + squares @ in_history) / (1 + numbers)
        shocks = self.omega * known + (self.alpha + self.gamma * (changes < 0)) * squares
        if self.delta and ranges is not None:
            shocks = shocks + self.delta / self.range_mean * np.where(known, ranges[:, -count:], 0.0)
        from_shocks = shocks @ _weights(self.beta, count, steps, self.history)
        variances: Array = from_shocks + start * self.beta**numbers
        return variances if self.starts_at_training else np.maximum(variances, LEAST_VARIANCE)


@lru_cache(maxsize=64)
def _weights(beta: float, count: int, steps: int, history: int) -> Array:
    """The weight of each of ``count`` shocks in the variances after each of the last ``steps``, (count, steps).

    It is kept, since its powers take longer than all else that a forecast needs.
    """
    ages = np.arange(count - steps, count) - np.arange(count)[:, np.newaxis]
    weights: Array = np.where((ages >= 0) & (ages < history), beta ** np.maximum(ages, 0.0), 0.0)
    return weights


def ewma(history: int = HISTORY, *, starts_at_training: bool = False) -> Recursion:
    """The exponentially weighted mean of squared changes with RiskMetrics' decay."""
    return Recursion(
        omega=0.0,
        alpha=1 - RISKMETRICS_DECAY,
        gamma=0.0,
        beta=RISKMETRICS_DECAY,
        history=history,
        starts_at_training=starts_at_training,
    )


CONSTANT = Recursion(omega=0.0, alpha=0.0, gamma=0.0, beta=1.0, history=1)
"""A variance that stays as it is, so that intervals grow with the square root of the number of steps."""


def fit_recursion(changes: Array, ranges: Array | None = None) -> Recursion:
    """Fit a recursion to training changes by the likelihood of Student-t changes around zero (Bollerslev 1987).

    Its long-run variance is that of the changes (variance targeting; Francq et al. 2011).

    Args:
        changes: shape (n,).
        ranges: range variances of the same bars, shape (n,); they add a range term.
    """
    # Imported here because it takes a quarter of a second, which forecasts need not wait for.
    from scipy.optimize import minimize
    from scipy.signal import lfilter
    from scipy.special import expit, gammaln, logit

    squares, falls = np.square(changes), changes < 0
    mean = float(squares.mean())
    range_mean = 1.0 if ranges is None else float(ranges.mean()) / mean
    range_shocks = 0.0 if ranges is None else ranges / range_mean

    def recursion(at: Array) -> Recursion:
        """The persistence, the share of new changes, its asymmetric part, and the range's part of it."""
        persistence = MOST_PERSISTENT * float(expit(at[0]))
        new = LARGEST_SHARE * persistence * float(expit(at[1]))
        delta = 0.0 if ranges is None else new * float(expit(at[4]))
        alpha = (new - delta) * float(expit(-at[2]))
        return Recursion(
            omega=mean * (1 - persistence),
            alpha=alpha,
            gamma=2 * (new - delta - alpha),
            beta=persistence - new,
            delta=delta,
            range_mean=range_mean,
            history=HISTORY,
        )

    def loss(at: Array) -> float:
        each, df = recursion(at), 2.05 + math.exp(at[3])
        shocks = each.omega + (each.alpha + each.gamma * falls) * squares + each.delta * range_shocks
        after, _ = lfilter([1.0], [1.0, -each.beta], shocks[:-1], zi=[each.beta * mean])
        variances = np.concatenate([[mean], after])
        log_density = (
            gammaln((df + 1) / 2)
            - gammaln(df / 2)
            - 0.5 * np.log(math.pi * (df - 2) * variances)
            - (df + 1) / 2 * np.log1p(squares / variances / (df - 2))
        )
        return -float(log_density.mean())

    bounds = [(-3.0, 9.0), (-6.0, 6.0), (-6.0, 6.0), (-2.0, 4.0), (-6.0, 6.0)][: 4 if ranges is None else 5]
    fits = [
        minimize(
            loss,
            np.array([logit(FIRST_PERSISTENCE), logit(share / LARGEST_SHARE), 0.0, 1.0, 0.0])[: len(bounds)],
            method="L-BFGS-B",
            bounds=bounds,
        )
        for share in FIRST_SHARES
    ]
    best = min(fits, key=lambda found: float(found.fun))
    return recursion(best.x)
