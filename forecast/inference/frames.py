"""Forecasts of DataFrames in the long format, by a trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.config import DataConfig
from forecast.errors import ForecastError, UsageError
from forecast.inference.predictor import Predictor
from forecast.inference.together import Known, forecast_each, reading_of, say_doubts
from forecast.notices import Notify, each_once
from forecast.prices.frames import CUTOFF, Columns, Rows, read_frame, say_left_out
from forecast.prices.series import Series
from forecast.scores.distribution import interval_probabilities

Array = NDArray[np.float64]

ALIAS = "LSTM"
"""Name of the column of point forecasts, with which those of bounds and quantiles begin."""


@dataclass(frozen=True)
class Asked:
    """The columns of a forecast.

    Attributes:
        horizon: number of steps.
        levels: shares of the intervals.
        names: names of the columns of bounds and quantiles, after that of the point forecasts.
        probabilities: probability of each of these columns, shape (k,).
        alias: name of the point forecasts.
    """

    horizon: int
    levels: tuple[float, ...]
    names: tuple[str, ...]
    probabilities: Array
    alias: str = ALIAS

    @classmethod
    def of(
        cls,
        horizon: int,
        level: Sequence[float] | None,
        levels: Sequence[float] | None = None,
        quantiles: Sequence[float] | None = None,
        alias: str = ALIAS,
    ) -> Asked:
        """What is asked for; the columns of intervals are those of 90, 80, 80 and 90 for the levels 80 and 90.

        Args:
            horizon: number of steps.
            level: levels in percent.
            levels: the same as shares; only one of the two is given.
            quantiles: probabilities of further columns.
            alias: name of the point forecasts.

        Raises:
            UsageError: when both levels are given, a number is impossible, or the alias is no name.
        """
        horizon = require_count("h", horizon)
        if not isinstance(alias, str) or not alias.strip():
            raise UsageError(f"`alias` {alias!r}: give the name of the column of forecasts, such as {ALIAS}")
        if level is not None and levels is not None:
            raise UsageError("`level` and `levels` both give the levels of intervals; omit one of the two")
        shares = {f"{100 * share:.10g}": share for share in _numbers("levels", levels)}
        for percent in _numbers("level", level):
            if not 1 <= percent < 100:
                raise UsageError(
                    f"`level` {percent:g}: levels are percent, such as 90; give shares such as 0.9 as `levels`"
                )
            # 99.9 / 100 is not 0.999.
            shares[f"{percent:.10g}"] = float(f"{percent / 100:.12g}")
        for share in shares.values():
            if not 0 < share < 1:
                raise UsageError(f"`levels` {share:g}: levels are shares between 0 and 1, such as 0.9")
        further = _numbers("quantiles", quantiles)
        for probability in further:
            if not 0 < probability < 1:
                raise UsageError(
                    f"`quantiles` {probability:g}: give probabilities between 0 and 1, such as 0.1"
                )
        order = sorted(shares, key=lambda name: shares[name])
        bounds = interval_probabilities([shares[name] for name in order])
        lower, upper = np.split(bounds, 2)
        names = [
            *(f"{alias}-lo-{name}" for name in reversed(order)),
            *(f"{alias}-hi-{name}" for name in order),
            *(f"{alias}-q-{100 * probability:.10g}" for probability in further),
        ]
        probabilities = np.concatenate([lower[::-1], upper, further])
        return cls(horizon, tuple(shares.values()), tuple(names), probabilities, alias)

    def require(self, predictor: Predictor) -> None:
        """Check that a model can make these forecasts.

        Raises:
            LevelError: when it has no such intervals.
            WindowError: when it cannot forecast so many steps.
        """
        predictor.require_horizon(self.horizon)
        if self.levels:
            predictor.require_levels(self.levels, self.horizon)

    def require_apart(self, columns: Columns) -> None:
        """Check that no column of forecasts has the name of another column of a result.

        Raises:
            UsageError: when one has.
        """
        others = {name: f"`{option}`" for option, name in vars(columns).items()}
        others[CUTOFF] = "the column of cutoffs"
        for name in (self.alias, *self.names):
            if name in others:
                raise UsageError(
                    f"`alias` {self.alias}: {name} is also the name of {others[name]}; choose another `alias`, or "
                    "rename that column"
                )

    def columns(self, prices: Array, quantiles: Array | None) -> dict[str, Array]:
        """The columns of prices (n,) and quantiles (n, k)."""
        bounds = [] if quantiles is None else list(quantiles.T)
        return {self.alias: prices, **dict(zip(self.names, bounds, strict=True))}


def _numbers(option: str, given: Sequence[float] | None) -> list[float]:
    """The numbers, of which one may be given without a list.

    Raises:
        UsageError: when they are no numbers, or a table.
    """
    if given is None:
        return []
    _require_no_frame(option, given)
    try:
        found: list[float] = np.atleast_1d(given).astype(np.float64).tolist()
    except (TypeError, ValueError):
        raise UsageError(f"`{option}` {given!r}: give a list of numbers") from None
    return found


def require_count(option: str, value: int, others: str = "") -> int:
    """A number of one or more.

    Args:
        option: name of the parameter.
        value: what is given.
        others: for the message, what else it may be.

    Raises:
        UsageError: when it is none.
    """
    _require_no_frame(option, value)
    if not isinstance(value, int | np.integer) or value < 1:
        raise UsageError(f"`{option}` {value}: give a whole number, 1 or more{others}")
    return int(value)


def _require_no_frame(option: str, value: Any) -> None:
    """Refuse a frame, which is the first argument of ``fit`` and which users give as that of ``predict`` too."""
    if hasattr(value, "columns"):
        raise UsageError(f"`{option}` is a {type(value).__name__}; give numbers, and the DataFrame as `df`")


def listener(notify: Notify | None) -> Notify:
    """What says each notice once.

    Raises:
        UsageError: when ``notify`` cannot be called.
    """
    if notify is not None and not callable(notify):
        raise UsageError(f"`notify` {notify!r}: give a function that is called with each line, or None")
    return each_once(notify)


def known_of(predictor: Predictor, prices: Mapping[str, Series], notify: Notify) -> dict[str, Known]:
    """What the forecasts of series start from; one that the model cannot forecast is left out.

    Args:
        predictor: the model, of any of its symbols.
        prices: clean series by symbol.
        notify: called with a line on the series that are left out, and on those that the model was not trained on.

    Raises:
        ForecastError: the problem of the first series, when none can be forecast.
    """
    known: dict[str, Known] = {}
    problems: dict[str, ForecastError] = {}
    for symbol, series in prices.items():
        try:
            known[symbol] = Known.of(symbol, series, predictor)
        except ForecastError as error:
            problems[symbol] = error
    if not known:
        raise next(iter(problems.values()))
    say_left_out({symbol: str(problem) for symbol, problem in problems.items()}, notify)
    for symbol, each in known.items():
        if symbol not in predictor.symbols:
            notify(
                f"warning: the model was not trained on {symbol}; its prices are normalized by the window's "
                f"{len(each.values)} values alone"
            )
    return known


def predict_frame(
    predictor: Predictor, df: Any, asked: Asked, columns: Columns, *, notify: Notify | None
) -> Any:
    """Forecast each series of a frame from its end; see ``Predictor.predict_frame``."""
    asked.require(predictor)
    say = listener(notify)
    long = read_frame(df, DataConfig(**reading_of(predictor)), columns, notify=say)
    asked.require_apart(long.form.columns)
    known = known_of(predictor, long.panel.series, say)
    say_doubts(known, say)
    found = forecast_each(known, asked.horizon, asked.probabilities, say)
    return long.form.frame(
        [
            Rows(symbol, long.panel.series[symbol].next_dates(asked.horizon), asked.columns(*each))
            for symbol, each in found.items()
        ]
    )
