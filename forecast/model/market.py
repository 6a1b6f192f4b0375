"""What the whole market did: inputs of a model of many symbols beside each symbol's own prices.

Each session of a panel has two market columns, the mean and the dispersion of its symbols' changes, each change in
units of its symbol's training changes. They are known at the session's end, like its prices. NaN stands for a session
whose market is not known, as in a request that has one symbol's prices and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecast.model.volatility import ewma

Array = NDArray[np.float64]

COLUMNS = 2
"""Number of market columns: the mean of the changes, and the logarithm of their dispersion."""
CHANNELS = 4
"""Numbers that a network sees per step: the mean change, its running volatility, the dispersion, and whether these are
known."""
LEAST_SYMBOLS = 5
"""Fewest symbols with a change for which the market of a session is known."""
MARKET_SHARE = 0.5
"""Least share of a model's symbols whose windows show the market."""
HIDDEN_SHARE = 0.25
"""Share of the training windows that are seen without the market, so that a model also answers without it."""
CHANGE_BOUND = 5.0
"""Largest change of one symbol in the mean and the dispersion, approached smoothly: an error in one price is no market
move."""


@dataclass(frozen=True)
class Market:
    """The units of the market columns, which are those of the training sessions.

    Attributes:
        change_std: standard deviation of the mean change.
        dispersion: geometric mean of the dispersion.
    """

    change_std: float
    dispersion: float

    @classmethod
    def fit(cls, moves: Array) -> Market | None:
        """Fit the units on the ``moves`` (sessions, 2) of training sessions; None where these do not show a market."""
        known = moves[np.isfinite(moves).all(axis=1)]
        change_std = float(known[:, 0].std()) if len(known) else 0.0
        return cls(change_std, float(np.exp(np.log(known[:, 1]).mean()))) if change_std > 0 else None

    def columns(self, moves: Array) -> Array:
        """Market columns, of the same shape, from ``moves`` (sessions, 2)."""
        return np.stack([moves[:, 0] / self.change_std, np.log(moves[:, 1] / self.dispersion)], axis=1)


def moves_of(changes: Sequence[Array], sessions: Sequence[NDArray[np.intp]], count: int) -> Array:
    """The mean and the dispersion of the changes of each session, shape (count, 2).

    NaN where fewer than ``LEAST_SYMBOLS`` have a change, or all changes are equal.

    Args:
        changes: each symbol's, in units of its training changes, shape (n,).
        sessions: the number of each change's session, shape (n,).
        count: number of sessions.
    """
    numbers, sums, squares = np.zeros(count), np.zeros(count), np.zeros(count)
    for own, at in zip(changes, sessions, strict=True):
        changes_there = bounded(own)
        numbers[at] += 1
        sums[at] += changes_there
        squares[at] += np.square(changes_there)
    return moves_of_sums(numbers, sums, squares)


def least_symbols(count: int) -> int:
    """Fewest symbols of a model of ``count`` whose windows show the market."""
    return max(LEAST_SYMBOLS, math.ceil(MARKET_SHARE * count))


def moves_of_sums(numbers: Array, sums: Array, squares: Array) -> Array:
    """As ``moves_of``, from the number of bounded changes of each session, their sum, and that of their squares."""
    enough, divisors = numbers >= LEAST_SYMBOLS, np.maximum(numbers, 1.0)
    means = sums / divisors
    variances = squares / divisors - np.square(means)
    # Rounding leaves a little where all changes are equal.
    known = enough & (variances > np.finfo(np.float32).eps)
    spread = np.sqrt(np.where(known, variances, np.nan))
    return np.stack([np.where(known, means, np.nan), spread], axis=1)


def bounded(changes: Array) -> Array:
    """Changes of symbols as they enter the market's."""
    soft: Array = CHANGE_BOUND * np.tanh(changes / CHANGE_BOUND)
    return soft


def market_channels(columns: Array, count: int, bound: float, log_scale: float) -> Array:
    """What a network sees of the market in each of the last ``count`` rows, shape (n, count, ``CHANNELS``).

    Where the market is not known, all channels are zero.

    Args:
        columns: market columns, shape (n, rows, 2), with the history of the running volatility.
        count: number of rows.
        bound: largest mean change, approached smoothly.
        log_scale: factor on the logarithms of the volatility and of the dispersion.
    """
    changes, recent = columns[..., 0], columns[:, -count:]
    known = np.isfinite(recent[..., 0] + recent[..., 1])
    volatility = np.log(ewma().variances(changes, None, count)) / 2
    channels = np.stack(
        [
            bound * np.tanh(recent[..., 0] / bound),
            log_scale * volatility,
            log_scale * recent[..., 1],
            np.ones_like(volatility),
        ],
        axis=-1,
    )
    return np.where(known[..., np.newaxis], channels, 0.0)
