"""Simulated futures of a window, from which intervals beyond the next step are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from forecast.inference.prediction import Prediction, require_finite
from forecast.model.normalization import Scaling
from forecast.scores.distribution import interval_probabilities

Array = NDArray[np.float64]

PATHS = 500
"""Number of futures simulated for each window."""
FARTHEST_DRAWN = 1e300
"""Limit of a draw; beyond it (for log prices, also below its inverse), the next day would be infinite."""
PATH_SEED = 0
"""Seed of the draws, fixed so that the same window gets the same intervals."""


class Futures:
    """Possible continuations of one window: each day is drawn from the model's forecast after the days before it."""

    def __init__(
        self,
        forecast: Callable[[Array], Prediction],
        window: Array,
        levels: Sequence[float],
        scaling: Scaling,
        paths: int = PATHS,
    ) -> None:
        """Start ``paths`` futures after ``window``.

        Args:
            forecast: forecasts the next price of windows (n, length, 1).
            window: shape (1, length, 1), in price units.
            levels: levels of the intervals.
            scaling: scaling of the prices.
            paths: number of futures.

        Raises:
            LevelError: when the model has no intervals of these levels.
        """
        self._forecast, self._scale = forecast, scaling
        self._probabilities = interval_probabilities(levels)
        self._next: Array | None = forecast(window).intervals(levels)[0]
        self._values = np.repeat(window, paths, axis=0)
        self._stretch = 1.0
        self._drawn: list[Array] = []
        self._generator = np.random.default_rng(PATH_SEED)

    def advance(self, paths: int) -> Array | None:
        """Draw the next day of ``paths`` more futures.

        Returns:
            The day's central intervals, shape (levels, 2), lower bound first; None until all futures have drawn it.
        """
        done = sum(map(len, self._drawn))
        prediction = self._forecast(self._values[done : done + paths])
        self._stretch = prediction.stretch
        lowest = 1 / FARTHEST_DRAWN if self._scale.log else -FARTHEST_DRAWN
        # One future that overflows must not spoil the others.
        drawn = np.nan_to_num(prediction.sample(self._generator), nan=lowest)
        self._drawn.append(np.clip(drawn, lowest, FARTHEST_DRAWN))
        if done + paths < len(self._values):
            return None
        day, self._drawn = np.concatenate(self._drawn), []
        self._values = np.concatenate([self._values[:, 1:], day[:, np.newaxis, np.newaxis]], axis=1)
        if self._next is not None:
            # The model itself gives the first day's intervals: its draws only serve the days after it.
            known, self._next = self._next, None
            return known
        # The draws leave out the stretch, so it is applied to their quantiles.
        *quantiles, middle = np.quantile(self._scale.normalize(day), [*self._probabilities, 0.5])
        bounds = self._scale.denormalize(middle + self._stretch * (np.array(quantiles) - middle))
        return require_finite(np.stack(np.split(bounds, 2), axis=-1))

    def step(self) -> Array:
        """Draw the next day of all futures; its central intervals, shape (levels, 2), lower bound first."""
        intervals = self.advance(len(self._values))
        if intervals is None:
            raise AssertionError("drawing a day of all futures completes it")
        return intervals
