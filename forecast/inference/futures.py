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
"""Futures of each window."""
FARTHEST_DRAWN = 1e300
"""A draw beyond it, or nearer to zero than its inverse for log prices, would be infinite on its next day."""
PATH_SEED = 0
"""The same window gets the same intervals."""


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
            levels: of the intervals.
            scaling: of the prices.
            paths: how many futures.

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
            Once all have it, its central intervals, shape (levels, 2), lower bound first.
        """
        done = sum(map(len, self._drawn))
        prediction = self._forecast(self._values[done : done + paths])
        self._stretch = prediction.stretch
        lowest = 1 / FARTHEST_DRAWN if self._scale.log else -FARTHEST_DRAWN
        # One of thousands of wild futures must not cost the others.
        drawn = np.nan_to_num(prediction.sample(self._generator), nan=lowest)
        self._drawn.append(np.clip(drawn, lowest, FARTHEST_DRAWN))
        if done + paths < len(self._values):
            return None
        day, self._drawn = np.concatenate(self._drawn), []
        self._values = np.concatenate([self._values[:, 1:], day[:, np.newaxis, np.newaxis]], axis=1)
        if self._next is not None:
            # The first day's intervals are the model's own: it is drawn for the days after it.
            known, self._next = self._next, None
            return known
        # Days were drawn without the stretch: it is applied to the drawn prices.
        *quantiles, middle = np.quantile(self._scale.normalize(day), [*self._probabilities, 0.5])
        bounds = self._scale.denormalize(middle + self._stretch * (np.array(quantiles) - middle))
        return require_finite(np.stack(np.split(bounds, 2), axis=-1))

    def step(self) -> Array:
        """Go on by one day; its central intervals, shape (levels, 2), lower bound first."""
        intervals = self.advance(len(self._values))
        if intervals is None:
            raise AssertionError("a day of all futures is a whole day")
        return intervals
