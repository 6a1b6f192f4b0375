"""A checkpoint as a model of MLflow's flavor ``python_function``: a table of windows in, a table of forecasts out.

``mlflow.pyfunc.load_model`` imports this module and calls ``_load_pyfunc``; nothing here imports MLflow, and nothing is
pickled: the model's data are the checkpoint.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecast.errors import WindowError
from forecast.inference.prediction import require_levels
from forecast.inference.predictor import Predictor, forecast_together, market_of
from forecast.scores.distribution import MAIN_LEVEL

WINDOW, SYMBOL = "window", "symbol"
"""Columns of the input; a model of one symbol has no ``symbol``."""
LEVELS, HORIZON, SAME_SESSION = "levels", "horizon", "same_session"
"""Parameters: the intervals, the steps, and whether all windows of a model that sees the market end together."""
STEP, PREDICTION = "step", "prediction"
"""Columns of the output, before those of the intervals."""


class TableModel:
    """A predictor that forecasts each row of a table."""

    def __init__(self, predictor: Predictor) -> None:
        """Forecast with ``predictor``."""
        self.predictor = predictor

    @property
    def default_levels(self) -> list[float]:
        """Levels of the intervals unless others are asked for; empty for a model without them."""
        return [MAIN_LEVEL] if self.predictor.widest_level >= MAIN_LEVEL else []

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Forecast the price after each window.

        Args:
            table: a row for each forecast: ``window``, past prices, oldest first, as ``Predictor.predict`` takes one
                window; for a model of many symbols also ``symbol``, which may be one that the model has never seen.
            params: ``levels``, ``horizon`` and ``same_session``.

        Returns:
            for each row and step, with the row's index: ``step``, ``prediction``, and for each level, as a percentage,
            ``lower_90`` and ``upper_90``; in price units.

        Raises:
            WindowError: when a window does not fit the model.
            LevelError: when the model has no intervals of these levels.
        """
        asked = params or {}
        levels = [float(level) for level in asked.get(LEVELS, self.default_levels)]
        horizon = int(asked.get(HORIZON, 1))
        if horizon < 1:
            raise WindowError(f"`{HORIZON}` {horizon}: give at least 1")
        windows = [_plain(window) for window in table[WINDOW]]
        predictors = self._predictors(table, windows)
        same_session = bool(asked.get(SAME_SESSION)) and horizon == 1
        if same_session:
            prices, bounds = _together(predictors, windows, levels)
        else:
            prices, bounds = _each_alone(predictors, windows, levels, horizon)
        for doubt in self._doubts(predictors, windows, same_session, horizon):
            warnings.warn(doubt, stacklevel=2)
        columns: dict[str, Any] = {
            STEP: np.tile(np.arange(1, horizon + 1), len(windows)),
            PREDICTION: prices.ravel(),
        }
        for index, level in enumerate(levels):
            for side, bound in enumerate(bound_columns(level)):
                columns[bound] = bounds[:, :, index, side].ravel()
        return pd.DataFrame(columns, index=table.index.repeat(horizon))

    def _doubts(
        self, predictors: Sequence[Predictor], windows: Sequence[Any], same_session: bool, horizon: int
    ) -> list[str]:
        """Why forecasts are doubtful, each reason in one line."""
        many = bool(self.predictor.whole.symbols)
        each = [
            f"{predictor.checkpoint.config.symbol}: {doubt}" if many else doubt
            for predictor, window in zip(predictors, windows, strict=True)
            for doubt in (predictor.short_history([window]), predictor.range_doubt([window]))
            if doubt
        ]
        together = [predictor.checkpoint.config.symbol for predictor in predictors] if same_session else []
        market = self.predictor.market_doubt(together, horizon, f"say so with `{SAME_SESSION}`")
        return list(dict.fromkeys([*each, market] if market else each))

    def _predictors(self, table: pd.DataFrame, windows: Sequence[Any]) -> list[Predictor]:
        """A predictor for each row."""
        whole = self.predictor
        if not whole.whole.symbols:
            return [whole] * len(table)
        if SYMBOL not in table:
            raise WindowError(
                f"the table has no column `{SYMBOL}`: this model forecasts many symbols; add it"
            )
        known = {symbol: whole.of_symbol(symbol) for symbol in set(table[SYMBOL]) & set(whole.symbols)}
        return [
            known[symbol] if symbol in known else whole.of_window(window, symbol)
            for symbol, window in zip(table[SYMBOL], windows, strict=True)
        ]


def bound_columns(level: float) -> tuple[str, str]:
    """Names of the columns of an interval's bounds: ``lower_90`` and ``upper_90`` for 0.9."""
    return f"lower_{100 * level:g}", f"upper_{100 * level:g}"


def _plain(window: Any) -> list[Any]:
    """One window as lists: MLflow may pass arrays of arrays."""
    return [row.tolist() if isinstance(row, np.ndarray) else row for row in window]


def _each_alone(
    predictors: Sequence[Predictor], windows: Sequence[Any], levels: Sequence[float], horizon: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Prices (n, horizon) and bounds (n, horizon, levels, 2), with one call for all windows of a predictor."""
    prices = np.empty((len(windows), horizon))
    bounds = np.empty((len(windows), horizon, len(levels), 2))
    rows_of: dict[int, list[int]] = {}
    for row, predictor in enumerate(predictors):
        rows_of.setdefault(id(predictor), []).append(row)
    for rows in rows_of.values():
        predictor, own = predictors[rows[0]], [windows[row] for row in rows]
        try:
            prices[rows] = predictor.predict_steps(own, horizon)
            if levels:
                bounds[rows] = predictor.predict_intervals(own, levels, horizon, prices[rows])
        except WindowError as error:
            if len(rows) == len(windows):
                raise
            # The error's text counts only this symbol's windows.
            raise WindowError(f"{predictor.checkpoint.config.symbol}: {error}") from None
    return prices, bounds


def _together(
    predictors: Sequence[Predictor], windows: Sequence[Any], levels: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Prices (n, 1) and bounds (n, 1, levels, 2) of windows that all end with the same session."""
    if levels:
        require_levels(predictors[0].widest_level, levels)
    found = forecast_together(predictors, windows, market_of(predictors, windows))
    prices = np.array([each.prices for each in found])
    bounds = [each.intervals(levels) if levels else np.empty((1, 0, 2)) for each in found]
    return prices, np.array(bounds).reshape(-1, 1, len(levels), 2)


def _load_pyfunc(path: str | os.PathLike[str]) -> TableModel:
    """The model of the checkpoint at ``path``; MLflow calls it by this name.

    Raises:
        CheckpointError: when the file is missing or not a usable checkpoint.
    """
    return TableModel(Predictor(path))
