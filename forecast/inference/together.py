"""Forecasts of several series with one model, each from the end of its own history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.config import DataConfig
from forecast.errors import WindowError
from forecast.inference.dating import with_the_same_sessions
from forecast.inference.predictor import Predictor, forecast_together, market_of
from forecast.model.windows import plain_window
from forecast.names import listed
from forecast.prices.series import Series

Array = NDArray[np.float64]
Dates = NDArray[np.datetime64]


@dataclass(frozen=True)
class Known:
    """What a forecast of one series starts from.

    Attributes:
        predictor: the model, for this series.
        values: the window, as ``plain_window`` gives it.
        dates: its dates; None where they are not known.
    """

    predictor: Predictor
    values: list[Any]
    dates: Dates | None = None

    @classmethod
    def of(cls, symbol: str, series: Series, predictor: Predictor) -> Known:
        """The end of a series, and the model for it; a model of many symbols takes also those it was not trained on.

        Args:
            symbol: the series' symbol.
            series: clean prices.
            predictor: the model, of any of its symbols.

        Raises:
            UsageError: when the model is one of another symbol.
            WindowError: when the series is too short, or has other bars than the model's.
        """
        bars, own_bars = predictor.dating.timeline, series.timeline
        if bars is not None and bars.interval != own_bars.interval:
            raise WindowError(
                f"its bars are of {own_bars.interval}, those of the model of {bars.interval}; give bars of "
                f"{bars.interval}"
            )
        used = predictor.rows_used
        values = plain_window(series.matrix[-used:])
        if symbol in predictor.whole.symbols or not predictor.whole.symbols:
            own = predictor.of_symbol(symbol)
            own.check([values])
        else:
            own = predictor.of_window(values, symbol, own_bars)
        return cls(own, values, series.dates[-used:])


def forecast_each(
    known: Mapping[str, Known], horizon: int, probabilities: Array, say: Callable[[str], None]
) -> dict[str, tuple[Array, Array | None]]:
    """The next prices of each symbol of one model, and their quantiles.

    Args:
        known: by symbol, what its forecast starts from. For one step, those that end with the same session show each
            other the market, if the model sees it.
        horizon: number of steps.
        probabilities: those of the quantiles, shape (k,); without any, there are none.
        say: called with a line where forecasts do not see the market.

    Returns:
        By symbol, prices (horizon,) and quantiles (horizon, k), or None without probabilities.

    Raises:
        WindowError: when a window does not fit the model, or the model cannot forecast so many steps.
        LevelError: when quantiles are asked of a model without a distribution.
    """
    found: dict[str, tuple[Array, Array | None]] = {}
    wanted = len(probabilities) > 0
    if horizon > 1:
        first = next(iter(known.values())).predictor
        if doubt := first.market_doubt((), horizon):
            say(f"warning: {doubt}")
        for symbol, each in known.items():
            steps, quantiles = each.predictor.predict_steps([each.values], horizon), None
            if wanted:
                quantiles = each.predictor.predict_quantiles(
                    [each.values], range(1, horizon + 1), probabilities, steps
                )[0]
            found[symbol] = steps[0], quantiles
        return found
    for symbols in with_the_same_sessions({symbol: each.dates for symbol, each in known.items()}):
        own = [known[symbol].predictor for symbol in symbols]
        if doubt := own[0].market_doubt(symbols):
            say(f"warning: {listed(symbols)}: {doubt}")
        values = [known[symbol].values for symbol in symbols]
        predictions = forecast_together(own, values, market_of(own, values))
        for symbol, prediction in zip(symbols, predictions, strict=True):
            found[symbol] = prediction.prices, prediction.quantiles(probabilities) if wanted else None
    return {symbol: found[symbol] for symbol in known}


def say_doubts(known: Mapping[str, Known], say: Callable[[str], None]) -> None:
    """Say in lines why forecasts of these symbols are doubtful: short windows, and prices that training never saw."""
    for symbol, each in known.items():
        if complaint := each.predictor.short_history([each.values]):
            say(f"warning: {symbol}: {complaint}")
    # One line: after a year of rising prices, this holds for most symbols.
    outside = [symbol for symbol, each in known.items() if each.predictor.outside_training_range(each.values)]
    if outside:
        say(f"warning: {listed(outside)}: prices outside the training range; trust these forecasts less")


def reading_of(predictor: Predictor, symbol: str | None = None) -> dict[str, Any]:
    """The fields of ``DataConfig`` for the model's series: all rows, in the bars that it was trained on.

    Args:
        predictor: the model, for this symbol.
        symbol: the symbol that is read; None for all of the model.
    """
    config, timeline = predictor.checkpoint.config, predictor.dating.timeline
    given = {name: getattr(config, name) for name in DataConfig.model_fields}
    if timeline is not None:
        given["interval"] = timeline.interval
        # The symbols of a model have bars of one length, but their calendars can differ.
        if symbol in predictor.symbols or not predictor.whole.symbols:
            given["calendar"] = timeline.calendar_name
    return {**given, "start": None, "end": None}
