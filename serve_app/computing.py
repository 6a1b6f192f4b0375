"""Forecasts that may take long: in a thread, and in chunks between which other requests get a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from forecast.errors import BadWindow, WindowError
from forecast.inference.prediction import Prediction
from forecast.inference.predictor import Predictor, forecast_together, market_of
from serve_app.batching import Window
from serve_app.served_model import ServedModel
from serve_app.tracing import traced_network

CHUNK_COST = 4e9
"""Multiply-adds that a batch request computes at a time, some tenths of a second on a CPU: after each chunk, other
requests get a turn, and a request past its time limit ends. A chunk has at least one forecast."""
MAX_CHUNK = 256
"""Most windows in a chunk, even where more would be cheap: larger chunks are no faster."""
Bounds = NDArray[np.float64]
Result = TypeVar("Result")


async def forecast_aside(
    threads: ThreadPoolExecutor,
    model: ServedModel,
    windows: Sequence[Window],
    horizon: int,
    levels: list[float],
) -> tuple[list[list[float]], Bounds | None]:
    """Return forecasts (n, horizon), and bounds (n, horizon, levels, 2) if there are levels, from one of ``threads``.

    The thread computes them in chunks: they may take long, and other requests use the same thread.

    Raises:
        BadWindow: when a window does not fit the model.
    """
    forecasts: list[list[float]] = []
    bounds: list[Bounds] = []
    at_a_time = max(1, int(CHUNK_COST / model.cost))
    size = min(at_a_time, MAX_CHUNK)
    for first in range(0, len(windows), size):
        chunk = windows[first : first + size]
        if levels and horizon == 1:
            piece, their_bounds = await _run(
                threads, _piece_with_intervals, model.predictor, chunk, levels, first
            )
            forecasts += piece
            bounds.append(their_bounds)
            continue
        prices: list[list[float]] = [[] for _ in chunk]
        while (left := horizon - len(prices[0])) > 0:
            # Each piece continues from the forecasts of the previous one.
            past = [
                model.predictor.continued(window, done) for window, done in zip(chunk, prices, strict=True)
            ]
            steps = min(left, max(1, at_a_time // len(chunk)))
            piece = await _run(threads, _forecast_piece, model.predictor, past, steps, first)
            prices = [[*done, *more] for done, more in zip(prices, piece, strict=True)]
        forecasts += prices
    if levels and horizon > 1:
        for index, (window, ahead) in enumerate(zip(windows, forecasts, strict=True)):
            bounds.append(
                await _run(threads, _intervals_ahead, model.predictor, [window], ahead, levels, index)
            )
    return forecasts, np.concatenate(bounds) if bounds else None


async def forecast_series(
    threads: ThreadPoolExecutor,
    models: Sequence[ServedModel],
    windows: Sequence[Window],
    horizon: int,
    levels: list[float],
    *,
    same_session: bool,
) -> tuple[list[list[float]], list[Bounds]]:
    """Return forecasts (n, horizon), and each window's bounds (horizon, levels, 2), from one of ``threads``.

    For one step, models that see the market compute it from windows that all end with the ``same_session``.

    Raises:
        BadWindow: when a window does not fit its model.
    """
    if horizon > 1:
        forecasts: list[list[float]] = []
        bounds: list[Bounds] = []
        for index, (model, window) in enumerate(zip(models, windows, strict=True)):
            try:
                (ahead,), found = await forecast_aside(threads, model, [window], horizon, levels)
            except WindowError as error:
                raise BadWindow(index, error) from None
            forecasts.append(ahead)
            bounds += [] if found is None else list(found)
        return forecasts, bounds
    loop = asyncio.get_running_loop()
    answers: dict[int, Prediction] = {}
    by_engine: dict[int, list[int]] = {}
    for index, model in enumerate(models):
        by_engine.setdefault(id(model.predictor.engine), []).append(index)
    for indices in by_engine.values():
        market = None
        if same_session:
            everyone, all_windows = [models[at].predictor for at in indices], [windows[at] for at in indices]
            try:
                market = await loop.run_in_executor(threads, market_of, everyone, all_windows)
            except BadWindow as bad:
                raise BadWindow(indices[bad.index], bad) from None
        size = max(1, min(MAX_CHUNK, int(CHUNK_COST / models[indices[0]].cost)))
        for first in range(0, len(indices), size):
            chunk = indices[first : first + size]
            predictors, theirs = [models[at].predictor for at in chunk], [windows[at] for at in chunk]
            try:
                network = traced_network(forecast_together, predictors, len(theirs))
                predictions = await loop.run_in_executor(threads, network, predictors, theirs, market)
            except BadWindow as bad:
                raise BadWindow(chunk[bad.index], bad) from None
            answers.update(zip(chunk, predictions, strict=True))
    ordered = [answers[index] for index in range(len(models))]
    return [each.prices.tolist() for each in ordered], (
        [each.intervals(levels) for each in ordered] if levels else []
    )


def _run(
    threads: ThreadPoolExecutor,
    compute: Callable[..., Result],
    predictor: Predictor,
    windows: Sequence[Window],
    *more: Any,
) -> asyncio.Future[Result]:
    """Return a future of ``compute(predictor, windows, *more)``, from one of ``threads``."""
    traced = traced_network(compute, [predictor], len(windows))
    return asyncio.get_running_loop().run_in_executor(threads, traced, predictor, windows, *more)


def _forecast_piece(
    predictor: Predictor, windows: Sequence[Window], steps: int, first: int
) -> list[list[float]]:
    """Forecast (n, steps) a request's windows, the first of which has index ``first``; runs in a thread.

    Raises:
        BadWindow: when a window does not fit the model.
    """
    try:
        forecasts: list[list[float]] = predictor.predict_steps(windows, steps).tolist()
        return forecasts
    except WindowError:
        _name_bad_window(predictor, windows, steps, first)
        raise


def _piece_with_intervals(
    predictor: Predictor, windows: Sequence[Window], levels: list[float], first: int
) -> tuple[list[list[float]], Bounds]:
    """Forecast (n, 1) a request's windows from index ``first`` on, with bounds (n, 1, levels, 2); runs in a thread.

    Raises:
        BadWindow: when a window does not fit the model.
    """
    try:
        prediction = predictor.forecast(windows)
        return prediction.prices[:, np.newaxis].tolist(), prediction.intervals(levels)[:, np.newaxis]
    except WindowError:
        _name_bad_window(predictor, windows, 1, first)
        raise


def _intervals_ahead(
    predictor: Predictor, windows: Sequence[Window], prices: list[float], levels: list[float], index: int
) -> Bounds:
    """Bounds (1, horizon, levels, 2) around one window's point forecasts (horizon,); runs in a thread.

    Raises:
        BadWindow: when a bound is not a finite number.
    """
    try:
        return predictor.predict_intervals(windows, levels, len(prices), [prices])
    except WindowError as error:
        raise BadWindow(index, error) from None


def _name_bad_window(predictor: Predictor, windows: Sequence[Window], steps: int, first: int) -> None:
    """Raise BadWindow for the first window that does not fit the model."""
    # The first check is cheap, because it computes no forecast, and finds most misfits.
    for look in (predictor.check, lambda window: predictor.predict_steps(window, steps)):
        for index, window in enumerate(windows, first):
            try:
                look([window])
            except WindowError as error:
                raise BadWindow(index, error) from None
