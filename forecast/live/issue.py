"""Forecasts of the next prices, by a model and by the baselines.

A forecast starts from the last row of a symbol's series and is for the next bars of the series' calendar. A problem of
one symbol affects only that symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from forecast.backtest.baselines import BASELINES
from forecast.config import DataConfig, parse_settings
from forecast.errors import BadWindow, DataError, ForecastError, UsageError
from forecast.inference.dating import with_the_same_sessions
from forecast.inference.prediction import Prediction
from forecast.inference.predictor import (
    Predictor,
    forecast_together,
    market_of,
    predict_steps_together,
)
from forecast.inference.together import Known
from forecast.model.normalization import bar_part
from forecast.model.split import MIN_TARGETS, Split
from forecast.model.windows import PreparedSeries, prepare
from forecast.prices.series import Series
from forecast.prices.timeline import Timeline
from forecast.scores.distribution import PROBABILITIES

Array = NDArray[np.float64]
Problems = dict[str, str]
"""By symbol, the reason why it has no forecast, in one line."""
T = TypeVar("T")

ISSUED_BASELINES = ("persistence", "EWMA", "GARCH")
"""The baselines whose forecasts are issued with those of a model."""


@dataclass(frozen=True)
class Issued:
    """An issued forecast of one price.

    Attributes:
        symbol: the symbol.
        origin: date or time of the last known price, ISO 8601.
        last_price: the last known price.
        target: date or time of the forecast bar, ISO 8601.
        horizon: number of steps from the origin to the target.
        model: the checkpoint's SHA-256, or a baseline's name.
        prediction: point forecast, in price units.
        quantiles: quantiles at ``PROBABILITIES``, shape (199,), in price units.
        timeline: the bars of the symbol; None if they are not known.
    """

    symbol: str
    origin: str
    last_price: float
    target: str
    horizon: int
    model: str
    prediction: float
    quantiles: Array
    timeline: Timeline | None = None


@dataclass(frozen=True)
class _Due:
    """A symbol for which a model makes a forecast."""

    series: Series
    predictor: Predictor
    window: list[Any]
    targets: list[str]


def issue_model(
    predictor: Predictor, prices: Mapping[str, Series], horizons: Sequence[int], sha256: str
) -> tuple[list[Issued], Problems]:
    """Forecast each symbol with a model, from the last ``rows_used`` rows of its series.

    Only forecasts of one step see the market, and only among symbols that end with the same session. If a model of many
    symbols was not trained on a symbol, the window normalizes that symbol.

    Args:
        predictor: the model, of any of its symbols.
        prices: series by symbol.
        horizons: numbers of steps.
        sha256: the checkpoint's hash, which names the model.

    Returns:
        The forecasts, in the order of the symbols and steps, and the problems of the symbols without forecasts.

    Raises:
        WindowError: when the model cannot forecast so many steps.
    """
    horizons = sorted(set(horizons))
    predictor.require_horizon(horizons[-1])
    due: dict[str, _Due] = {}
    problems: Problems = {}
    for symbol, series in prices.items():
        try:
            due[symbol] = _due(predictor, symbol, series, horizons)
        except ForecastError as error:
            problems[symbol] = str(error)
    first: dict[str, Prediction] = {}
    if horizons[0] == 1:
        dates = {symbol: each.series.dates[-len(each.window) :] for symbol, each in due.items()}
        for symbols in with_the_same_sessions(dates):
            first |= _each({symbol: due[symbol] for symbol in symbols}, _one_step, problems)
    steps: dict[str, Array] = {}
    if horizons[-1] > 1:
        steps = _each(due, partial(predict_steps_together, horizon=horizons[-1]), problems)
    issued = []
    for symbol, each in due.items():
        if symbol in problems:
            continue
        try:
            found = _forecasts(each, horizons, first.get(symbol), steps.get(symbol))
        except ForecastError as error:
            problems[symbol] = str(error)
            continue
        issued += _issued(symbol, each.series, each.targets, sha256, found)
    return issued, problems


def _due(predictor: Predictor, symbol: str, series: Series, horizons: Sequence[int]) -> _Due:
    """The input for the forecast of one symbol.

    Raises:
        ForecastError: when the symbol cannot be forecast.
    """
    targets = _targets(series, horizons)
    known = Known.of(symbol, series, predictor)
    return _Due(series, known.predictor, known.values, targets)


def _one_step(predictors: Sequence[Predictor], windows: Sequence[Any]) -> list[Prediction]:
    """The next prices of symbols that end with the same session; errors as ``forecast_together``."""
    return forecast_together(predictors, windows, market_of(predictors, windows))


def _each(
    due: Mapping[str, _Due],
    forecast: Callable[[list[Predictor], list[Any]], Iterable[T]],
    problems: Problems,
) -> dict[str, T]:
    """The results of ``forecast`` for the windows of all symbols together, without those that it refuses."""
    symbols = [symbol for symbol in due if symbol not in problems]
    while symbols:
        try:
            found = forecast(
                [due[symbol].predictor for symbol in symbols], [due[symbol].window for symbol in symbols]
            )
            return dict(zip(symbols, found, strict=True))
        except BadWindow as bad:
            problems[symbols.pop(bad.index)] = str(bad)
    return {}


def _forecasts(
    due: _Due, horizons: Sequence[int], first: Prediction | None, steps: Array | None
) -> dict[int, tuple[float, Array]]:
    """Point forecasts and quantiles by number of steps.

    Args:
        due: the symbol.
        horizons: numbers of steps, ascending.
        first: the forecast of one step; None if one step is not requested.
        steps: point forecasts of all steps, shape (steps,); None if only one step is requested.

    Raises:
        LevelError: when the model has no distribution.
        WindowError: when a quantile is not a finite number.
    """
    found = {}
    if first is not None:
        found[1] = float(first.prices[0]), first.quantiles(PROBABILITIES)[0]
    if steps is not None:
        later = [horizon for horizon in horizons if horizon > 1]
        quantiles = due.predictor.predict_quantiles([due.window], later, PROBABILITIES, [steps])[0]
        found |= {
            horizon: (float(steps[horizon - 1]), own) for horizon, own in zip(later, quantiles, strict=True)
        }
    return found


def issue_baselines(
    prices: Mapping[str, Series],
    horizons: Sequence[int],
    names: Sequence[str] = ISSUED_BASELINES,
) -> tuple[list[Issued], Problems]:
    """Forecast each symbol with the baselines, fitted on all rows of the symbol's series.

    These are the baselines of a backtest whose test rows would start after the series. They use logarithms of prices,
    or the prices themselves if one of these is not positive.

    Args:
        prices: series by symbol.
        horizons: numbers of steps.
        names: baselines that have a distribution, from ``BASELINES``.

    Returns:
        The forecasts, in the order of the symbols, baselines and steps, and the problems by symbol, each with the name
        of the baseline that failed.

    Raises:
        UsageError: when there is no baseline of that name.
    """
    if unknown := [name for name in names if name not in BASELINES]:
        raise UsageError(f"there is no baseline {unknown[0]!r}; choose from {', '.join(BASELINES)}")
    horizons = sorted(set(horizons))
    issued: list[Issued] = []
    problems: Problems = {}
    for symbol, series in prices.items():
        found, complaints = _baselines_of(symbol, series, horizons, names)
        issued += found
        if complaints:
            problems[symbol] = "; ".join(complaints)
    return issued, problems


def _baselines_of(
    symbol: str, series: Series, horizons: Sequence[int], names: Sequence[str]
) -> tuple[list[Issued], list[str]]:
    """The forecasts of one symbol, and the reason for each missing one."""
    try:
        targets = _targets(series, horizons)
        prepared = _all_known(series, horizons[-1])
    except DataError as error:
        return [], [str(error)]
    issued, complaints = [], []
    for name in names:
        # An optimizer may raise any error on one symbol's prices; the other forecasts are still issued.
        try:
            with np.errstate(all="ignore"):
                ahead = BASELINES[name](prepared, horizons)
                found = {
                    horizon: (float(each.points[0]), each.required_quantiles[0])
                    for horizon, each in ahead.items()
                }
            if not all(np.isfinite([point, *quantiles]).all() for point, quantiles in found.values()):
                raise DataError("its forecast is not a finite number")
        except Exception as error:
            complaints.append(f"{name}: {error}")
            continue
        issued += _issued(symbol, series, targets, name, found)
    return issued, complaints


def _all_known(series: Series, longest: int) -> PreparedSeries:
    """A series without test rows, in the form that baselines take: the feature and the other parts of its bars.

    Raises:
        DataError: when the series is too short for forecasts of ``longest`` steps, or does not vary.
    """
    rows = len(series)
    if rows < longest + MIN_TARGETS:
        raise DataError(
            f"{rows} rows are too few for forecasts of {longest} steps; {longest + MIN_TARGETS} are needed"
        )
    parts = [i for i, name in enumerate(series.columns) if not i or bar_part(name, series.feature)]
    bars = replace(series, matrix=series.matrix[:, parts], columns=tuple(series.columns[i] for i in parts))
    config = parse_settings(DataConfig, {"log_prices": bool((bars.matrix > 0).all())})
    return prepare(bars, config, Split(train_end=rows, validation_end=rows, rows=rows))


def _targets(series: Series, horizons: Sequence[int]) -> list[str]:
    """Dates of the bars after the last row, one for each number of steps, ascending.

    Raises:
        DataError: when the calendar does not reach these dates.
    """
    return series.timeline.text(series.next_dates(horizons[-1])[np.array(horizons) - 1])


def _issued(
    symbol: str,
    series: Series,
    targets: Sequence[str],
    model: str,
    found: Mapping[int, tuple[float, Array]],
) -> list[Issued]:
    """The forecasts of one symbol with one model, from point forecasts and quantiles by number of steps, ascending."""
    (origin,) = series.timeline.text(series.dates[-1:])
    last_price = float(series.values[-1])
    return [
        Issued(symbol, origin, last_price, target, horizon, model, prediction, quantiles, series.timeline)
        for target, (horizon, (prediction, quantiles)) in zip(targets, found.items(), strict=True)
    ]
