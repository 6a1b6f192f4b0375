"""Forecast distributions of the next value.

Each has a location and a scale per window and a shape around them, in units of the model's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

PROBABILITIES: Array = np.arange(1, 200) / 200
"""Probabilities at which a forecast's quantiles are kept for its scores; they include the bounds of the usual
intervals."""

WIDEST_LEVEL = 0.9999
"""Highest level of intervals of a learned distribution: further out it has seen nothing."""
NODES = 32
"""Number of degrees of freedom with exact quantiles, from which all others are interpolated."""
LEAST_DRAWN_DF = 3.0
"""Fewest degrees of freedom of draws: with fewer, a few of them would be most of the variance."""
MAIN_LEVEL = 0.9
"""Level that intervals are calibrated for, and that is shown where there is room for one."""


def interval_probabilities(levels: ArrayLike) -> Array:
    """Probabilities of the lower and upper bounds of central intervals: levels (k,) to (2 k,), lower ones first."""
    tails = (1 - np.asarray(levels, dtype=np.float64)) / 2
    return np.concatenate([tails, 1 - tails])


class Distribution(Protocol):
    """Distributions of the next value of n windows."""

    @property
    def widest_level(self) -> float:
        """Highest level of its central intervals."""
        ...

    @property
    def center(self) -> Array:
        """The middle of each, (n,), around which the stretch widens it."""
        ...

    @property
    def spread(self) -> Array:
        """Standard deviation of each, (n,), without the stretch.

        A volatility that follows from drawn days would take the stretch for volatility, which would then grow every
        day.
        """
        ...

    def quantiles(self, probabilities: Array) -> Array:
        """Quantiles (n, k) at probabilities (k,), increasing along the second axis if the probabilities do."""
        ...

    def draws(self, generator: np.random.Generator, shape: tuple[int, int]) -> Array:
        """Draws of that shape (n, paths) around zero, with a variance of one."""
        ...

    def split(self) -> Sequence[Distribution]:
        """Split into one distribution per window."""
        ...


@dataclass(frozen=True)
class StudentT:
    """Student's t distributions, shifted by ``location`` and scaled by ``scale``; each of shape (n, members).

    The quantiles are the means of the members' quantiles (Vincent's average; Lichtendahl et al. 2013).

    Attributes:
        df: degrees of freedom: the fewer, the heavier the tails.
        stretch: calibration's factor on the scale.
    """

    location: Array
    scale: Array
    df: Array
    stretch: float = 1.0

    @property
    def widest_level(self) -> float:
        """``WIDEST_LEVEL``: far out, but well within the range of floats."""
        return WIDEST_LEVEL

    @property
    def center(self) -> Array:
        """The median of each, (n,)."""
        center: Array = self.location.mean(axis=1)
        return center

    @property
    def spread(self) -> Array:
        """Standard deviation, (n,), of the drawn distribution with the same interval of ``MAIN_LEVEL``."""
        from scipy.special import stdtrit

        upper = replace(self, stretch=1.0).quantiles(interval_probabilities([MAIN_LEVEL]))[:, 1]
        df = self._drawn_df
        spread: Array = (upper - self.center) / stdtrit(df, (1 + MAIN_LEVEL) / 2) / np.sqrt((df - 2) / df)
        return spread

    @property
    def _drawn_df(self) -> Array:
        """Degrees of freedom of draws, (n,)."""
        drawn: Array = np.maximum(self.df.mean(axis=1), LEAST_DRAWN_DF)
        return drawn

    def quantiles(self, probabilities: Array) -> Array:
        """Quantiles (n, k) at probabilities (k,)."""
        return self.placed(t_quantiles(self.df, probabilities))

    def placed(self, standard: Array) -> Array:
        """Quantiles (n, k) from those of each member's standard distribution, (n, members, k)."""
        each = self.location[..., np.newaxis] + self.stretch * self.scale[..., np.newaxis] * standard
        quantiles: Array = each.mean(axis=1)
        return quantiles

    def draws(self, generator: np.random.Generator, shape: tuple[int, int]) -> Array:
        """Draws of that shape (n, paths) around zero, with a variance of one."""
        df = self._drawn_df[:, np.newaxis]
        draws: Array = np.sqrt((df - 2) / df) * generator.standard_t(df, shape)
        return draws

    def split(self) -> list[StudentT]:
        """Split into one distribution per window."""
        rows = (slice(i, i + 1) for i in range(len(self.location)))
        return [
            replace(self, location=self.location[row], scale=self.scale[row], df=self.df[row]) for row in rows
        ]


def t_quantiles(df: Array, probabilities: Array) -> Array:
    """Quantiles of Student's t, shape (..., k), at probabilities (k,) for degrees of freedom (...) of two or more.

    For many degrees of freedom, Chebyshev polynomials in their inverse interpolate the quantiles, exact to 1e-12 and
    thirty times as fast.
    """
    # Imported here because it takes a tenth of a second, which only forecasts have to wait for.
    from scipy.special import stdtrit

    if df.size <= NODES:
        exact: Array = stdtrit(df[..., np.newaxis], probabilities)
        return exact
    # The inverse is between 0 and 1/2, the polynomials' variable between -1 and 1.
    quantiles: Array = chebyshev.chebvander(4 / df - 1, NODES - 1) @ _t_coefficients(tuple(probabilities))
    return quantiles


@lru_cache(maxsize=16)
def _t_coefficients(probabilities: tuple[float, ...]) -> Array:
    """Chebyshev coefficients (NODES, k) of the quantiles of Student's t at probabilities (k,)."""
    from scipy.special import stdtrit

    nodes = chebyshev.chebpts1(NODES)
    exact = stdtrit(4 / (nodes[:, np.newaxis] + 1), probabilities)
    coefficients: Array = chebyshev.chebfit(nodes, exact, NODES - 1).astype(np.float64)
    return coefficients


def t_polynomials(probabilities: tuple[float, ...]) -> Array:
    """Coefficients (NODES, k), lowest power first, of polynomials in ``4 / df - 1`` for ``t_quantiles``.

    They are as exact as Chebyshev's: these fall faster with their degree than the conversion enlarges them.
    """
    powers = np.zeros((NODES, NODES))
    for degree in range(NODES):
        powers[: degree + 1, degree] = chebyshev.cheb2poly([0.0] * degree + [1.0])
    polynomials: Array = powers @ _t_coefficients(probabilities)
    return polynomials


@dataclass(frozen=True)
class Conformal:
    """Point forecasts with the errors of their model on rows that it was not trained on.

    This is split conformal prediction with errors in units of a local scale (Lei et al. 2018, "Distribution-free
    predictive inference for regression", section 5.2), each side separately: if errors in those units are exchangeable,
    a central interval of level p covers at least a share p of the rows.

    Attributes:
        location: shape (n,).
        scale: shape (n,), positive.
        errors: actual minus forecast, over the scale, of m held-out rows; shape (m,), ascending.
    """

    location: Array
    scale: Array
    errors: Array

    @property
    def center(self) -> Array:
        """The point forecast of each, (n,)."""
        return self.location

    @property
    def spread(self) -> Array:
        """Standard deviation of each, (n,)."""
        spread: Array = self.scale * float(np.std(self.errors))
        return spread

    @property
    def widest_level(self) -> float:
        """Highest level of central intervals; a wider one would need errors beyond the largest ones seen."""
        return max(0.0, 1 - 2 / (len(self.errors) + 1))

    def quantiles(self, probabilities: Array) -> Array:
        """Quantiles (n, k) at probabilities (k,); beyond the ``widest_level`` they use the largest errors."""
        count = len(self.errors)
        # A probability such as 0.1 is not exact: without rounding, its product could fall on the next rank.
        place = np.round((count + 1) * probabilities, 9)
        rank = np.where(probabilities < 0.5, np.floor(place), np.ceil(place)).astype(int)
        standard: Array = self.errors[np.clip(rank, 1, count) - 1]
        return self.location[:, np.newaxis] + self.scale[:, np.newaxis] * standard

    def draws(self, generator: np.random.Generator, shape: tuple[int, int]) -> Array:
        """Draws of that shape (n, paths) from the errors around their mean, over their standard deviation."""
        deviation = float(np.std(self.errors)) or 1.0  # the draws of errors that are all equal are zeros
        draws: Array = generator.choice((self.errors - self.errors.mean()) / deviation, shape)
        return draws

    def split(self) -> list[Conformal]:
        """Split into one distribution per window."""
        rows = (slice(i, i + 1) for i in range(len(self.location)))
        return [replace(self, location=self.location[row], scale=self.scale[row]) for row in rows]
