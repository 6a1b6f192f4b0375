"""The predictor: loads a checkpoint once and forecasts any number of windows at a time."""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Collection, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forecast.errors import BadWindow, DataError, WindowError
from forecast.inference.dating import Dating
from forecast.inference.engines import Engine, EngineName, build_engine, exported_engine
from forecast.inference.prediction import Prediction, bounds_of, require_finite, require_levels
from forecast.model.card import ModelCard
from forecast.model.device import choose_device
from forecast.model.exported import is_exported, load_exported
from forecast.model.forecaster import WIDEST_SIMULATED_LEVEL, Forecaster
from forecast.model.likelihood import Outputs, distribution, point_forecasts, widest_level
from forecast.model.market import least_symbols, moves_of
from forecast.model.normalization import Normalization
from forecast.model.windows import plain_window
from forecast.notices import Notify, say_on_stderr
from forecast.prices import calendars
from forecast.prices.timeline import Timeline
from forecast.scores.distribution import interval_probabilities

if TYPE_CHECKING:
    from forecast.model.checkpoint import Checkpoint

Array = NDArray[np.float64]


class Predictor:
    """A checkpoint or an exported model, ready to forecast.

    Windows have shape (n, length) for a model of one column, and (n, length, columns), the feature first, for a model
    with ``input_columns``; they may have different lengths. A forecast needs ``sequence_length`` values, and uses
    ``rows_used`` where there are as many: the volatility is computed from more than the window.

    With a model of many symbols, a predictor forecasts one; ``of_symbol`` and ``of_window`` make predictors of others,
    which share its networks.

    Attributes:
        path: the file's path, as given.
        whole: its content: a ``Checkpoint``, or the card of an exported model.
        checkpoint: the same; for a model of many symbols, as that of the predictor's symbol.
        dating: dates its forecasts.
        engine: runs its networks; ``engine.name`` and ``engine.device`` say how and where.
        multiply_adds: multiply-adds of one forecast, of all members together.
        rows_used: number of values, the latest, that a forecast uses.
        sequence_length: number of values that a forecast needs: the length of the longest of its members' windows.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        engine: EngineName | None = None,
        symbol: str | None = None,
    ) -> None:
        """Load ``path`` and put its network on a device.

        Args:
            path: the file of a checkpoint, or of an exported model, which ends in ``.onnx`` and needs no torch.
            device: ``auto``, ``cpu`` or ``cuda``; an exported model runs on a CPU.
            engine: ``torch``, ``onnx``, or ``auto`` for the faster one that works here; unless given, ``torch`` for a
                checkpoint, and ``onnx`` for an exported model, which has no other.
            symbol: the symbol that is forecast, for a model of many symbols; its first unless given.

        Raises:
            CheckpointError: when the file is missing or not a usable model.
            UsageError: when the device or the engine cannot be used, or the model has no such symbol.
        """
        self.path = os.fspath(path)
        self.whole: ModelCard
        self.engine: Engine
        if is_exported(path):
            exported = load_exported(path)
            self.whole, self.multiply_adds = exported.card, exported.multiply_adds
            self.engine = exported_engine(exported, path, device, engine or "onnx")
        else:
            from forecast.model.checkpoint import load_checkpoint

            self._run_by_engine(load_checkpoint(path), device, engine or "torch")
        self._choose(symbol)

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: str = "auto", engine: EngineName = "torch") -> Predictor:
        """A predictor of a checkpoint that is in no file, so that its ``path`` is empty; otherwise as from a file."""
        predictor = cls.__new__(cls)
        predictor.path = ""
        predictor._run_by_engine(checkpoint, device, engine)
        return predictor._choose(None)

    def _run_by_engine(self, checkpoint: Checkpoint, device: str, engine: EngineName) -> None:
        from forecast.model.network import multiply_adds

        self.whole = checkpoint
        self.multiply_adds = sum(multiply_adds(member.config) for member in checkpoint.members)
        self.engine = build_engine(checkpoint, choose_device(device), engine)

    def _choose(self, symbol: str | None) -> Predictor:
        """Forecast this symbol, or the first one of a model of many."""
        if symbol is None and self.whole.symbols:
            symbol = next(iter(self.whole.symbols))
        return self._bind(self.whole if symbol is None else self.whole.of_symbol(symbol))

    def _bind(self, checkpoint: ModelCard) -> Predictor:
        self.checkpoint = checkpoint
        self.dating = Dating(checkpoint)
        self.rows_used = checkpoint.rows_used
        self.sequence_length = checkpoint.sequence_length
        self._forecaster = Forecaster.of(checkpoint, self.engine)
        self._encoding = self._forecaster.encoding
        return self

    def of_symbol(self, symbol: str) -> Predictor:
        """A predictor of another symbol of the same model.

        Raises:
            UsageError: when the model has no such symbol.
        """
        return copy.copy(self)._bind(self.whole.of_symbol(symbol))

    def of_window(self, window: ArrayLike, symbol: str, timeline: Timeline | None = None) -> Predictor:
        """A predictor of a symbol that the model has never seen, normalized by one window of its values.

        The window's own mean and standard deviations take the place of those of training rows, so a long window, of
        ``rows_used`` values or more, gives a better forecast than a short one.

        Args:
            window: the symbol's values, as ``predict`` takes one window, shape (length,) or (length, columns).
            symbol: its name.
            timeline: its bars, as for ``dating_of``.

        Raises:
            WindowError: as in ``predict``; also when the values do not vary.
        """
        windows: Any = [window]
        (rows,) = self.check(windows)
        names = [self.whole.config.feature, *self.whole.config.input_columns]
        try:
            normalization = Normalization.fit(rows, names, log=self.whole.config.log_prices)
        except DataError as error:
            raise WindowError(f"the window of {symbol} cannot be used: {error}") from None
        unseen = copy.copy(self)._bind(self.whole.of_window(normalization, symbol))
        unseen.dating = self.dating_of(symbol, timeline)
        return unseen

    def dating_of(self, symbol: str, timeline: Timeline | None = None) -> Dating:
        """Dates of a symbol that the model has never seen.

        Args:
            symbol: its name.
            timeline: its bars; unless given, those of the model's symbols: of the ones with the calendar that the name
                tells, or of all. Where these differ, the symbol has no dates.
        """
        if timeline is None:
            calendar, _ = calendars.named(symbol, None)
            alike = {bars for bars in self._timelines if calendar in (None, bars.calendar_name)}
            timeline = alike.pop() if len(alike) == 1 else None
        return Dating.of_unseen(self.whole, symbol, timeline)

    @functools.cached_property
    def _timelines(self) -> frozenset[Timeline]:
        """The bars of the model's symbols, as far as they are known."""
        parts = self.whole.symbols.values() or [self.whole]
        return frozenset(bars for part in parts if (bars := Timeline.of(part.provenance)))

    @property
    def symbols(self) -> list[str]:
        """The symbols that the model was trained on."""
        return list(self.whole.symbols) or [self.whole.config.symbol]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the model sees for each bar; the first is the feature that it forecasts."""
        return (self.checkpoint.config.feature, *self.checkpoint.config.input_columns)

    def require_levels(self, levels: Sequence[float], horizon: int = 1) -> None:
        """Check that the model has intervals of these levels for so many steps.

        Raises:
            LevelError: when it does not.
        """
        require_levels(self.widest_level, levels)
        if horizon > 1:
            require_levels(min(self.widest_level, WIDEST_SIMULATED_LEVEL), levels, "beyond one step")

    @property
    def widest_level(self) -> float:
        """Highest level at which the model has intervals of the next price; 0 if it has none."""
        return widest_level(self.checkpoint.config.likelihood, self.checkpoint.calibration_scores)

    def typical_window(self) -> list[Any]:
        """A constant window in the middle of the training values."""
        middle = self._encoding.normalization.denormalize(np.zeros((self.rows_used, len(self.columns))))
        return plain_window(middle)

    def predict(self, windows: ArrayLike) -> Array:
        """Next prices (n,) for windows, oldest value first, length >= ``sequence_length``.

        Only the last ``rows_used`` values of each window are used.

        Raises:
            WindowError: when a window is too short or of another shape, or a value is not a finite number or, for a
                model of log prices, not positive; names the first such value.
        """
        return self.predict_steps(windows, 1)[:, 0]

    def forecast(self, windows: ArrayLike) -> Prediction:
        """Next prices with their distribution; windows and errors as in ``predict``."""
        # If a window overflows on the way, its result is refused.
        with np.errstate(all="ignore"):
            normalized = self._normalized(windows)
            return self._decoded(*self._forecaster.outputs(normalized), normalized[:, -1, 0])

    def _decoded(self, outputs: Outputs, volatility: NDArray[np.float32], last: Array) -> Prediction:
        return Prediction(
            prices=require_finite(self._encoding.prices(point_forecasts(outputs), last)),
            distribution=distribution(
                self._encoding.config.likelihood, outputs, volatility, self.checkpoint.calibration_scores
            ),
            last=last,
            encoding=self._encoding,
        )

    def predict_steps(self, windows: ArrayLike, horizon: int) -> Array:
        """The next ``horizon`` prices, shape (n, horizon).

        Each step takes the forecasts before it as prices (the recursive strategy; Ben Taieb et al. 2012), so errors
        accumulate.

        Raises:
            WindowError: as ``predict``; also when a step's forecast overflows, or for more than one step of a model
                with input columns that it does not forecast.
        """
        self.require_horizon(horizon)
        with np.errstate(all="ignore"):
            return require_finite(self._forecaster.prices(self._normalized(windows), horizon))

    def continued(self, window: Sequence[Any], prices: Sequence[float]) -> list[Any]:
        """A window with the bars of forecast prices (k,) after it, as ``predict_steps`` takes them itself."""
        normalization = self._encoding.normalization
        bars = normalization.denormalize(normalization.following_bars(np.asarray(prices, dtype=np.float64)))
        bars[:, 0] = prices  # exactly: normalization and its inverse change the last digits
        return [*window, *plain_window(bars)]

    def predict_intervals(
        self,
        windows: ArrayLike,
        levels: Sequence[float],
        horizon: int = 1,
        prices: ArrayLike | None = None,
    ) -> Array:
        """Central intervals of the next ``horizon`` prices, shape (n, horizon, levels, 2), lower bound first.

        For one step they come from the model itself; for more, from simulated paths around the point forecasts.

        Args:
            windows: as in ``predict``.
            levels: the levels.
            horizon: number of steps.
            prices: the point forecasts, shape (n, horizon), if they are known already.

        Raises:
            WindowError: as ``predict_steps``.
            LevelError: when the model has no intervals of these levels.
        """
        self.require_levels(levels, horizon)
        horizons, probabilities = range(1, horizon + 1), interval_probabilities(levels)
        return bounds_of(self.predict_quantiles(windows, horizons, probabilities, prices))

    def predict_quantiles(
        self,
        windows: ArrayLike,
        horizons: Sequence[int],
        probabilities: Array,
        prices: ArrayLike | None = None,
    ) -> Array:
        """Quantiles of the prices at numbers of steps, shape (n, horizons, k), in price units.

        They are the bounds of ``predict_intervals`` at any probabilities: even at those beyond the model's widest
        interval, where a model that has learned no distribution repeats its outermost ones.

        Args:
            windows: as in ``predict``.
            horizons: the numbers of steps, ascending.
            probabilities: between zero and one, shape (k,).
            prices: the point forecasts of all steps up to the last of ``horizons``, shape (n, steps), if they are known
                already.

        Raises:
            WindowError: as ``predict_steps``.
            LevelError: when the model has no distribution.
        """
        prediction = self.forecast(windows)
        found = [prediction.quantiles(probabilities)[:, np.newaxis]] if 1 in horizons else []
        later = [horizon for horizon in horizons if horizon > 1]
        if later:
            steps = self.predict_steps(windows, later[-1]) if prices is None else np.asarray(prices)
            feature = self._encoding.normalization.feature
            with np.errstate(all="ignore"):
                # Each window on its own has the same draws, whatever windows it comes with.
                quantiles = [
                    self._forecaster.quantiles(
                        each.required_distribution, points[np.newaxis], probabilities, later
                    )
                    for each, points in zip(prediction.split(), feature.normalize(steps), strict=True)
                ]
                found.append(require_finite(feature.denormalize(np.concatenate(quantiles))))
        return np.concatenate(found, axis=1)

    def predict_frame(
        self,
        df: Any,
        h: int = 1,
        level: Sequence[float] | None = None,
        *,
        levels: Sequence[float] | None = None,
        quantiles: Sequence[float] | None = None,
        id_col: str = "unique_id",
        time_col: str = "ds",
        target_col: str = "y",
        notify: Notify | None = say_on_stderr,
    ) -> Any:
        """The next ``h`` prices of each series of a DataFrame in the long format, as such a DataFrame.

        The series are cleaned as prices of a file. A model of many symbols also forecasts series that it has never
        seen, as ``of_window`` does. The arguments and the result are those of ``forecast.Forecaster.predict``.

        Raises:
            UsageError: when an argument is impossible, or the model is one of another symbol.
            DataError: when the frame cannot be read.
            WindowError: when no series has enough rows, or the model cannot forecast so many steps.
            LevelError: when the model has no such intervals.
        """
        from forecast.inference.frames import Asked, predict_frame
        from forecast.prices.frames import Columns

        asked = Asked.of(h, level, levels, quantiles)
        return predict_frame(self, df, asked, Columns(id_col, time_col, target_col), notify=notify)

    def require_horizon(self, horizon: int) -> None:
        """Check that the model can forecast this many steps.

        Raises:
            WindowError: when it would need forecasts of its input columns; parts of the bar need none.
        """
        needed = self.checkpoint.columns_not_forecast
        if horizon > 1 and needed:
            raise WindowError(
                f"a horizon of {horizon} would need forecasts of {', '.join(needed)} too, which this model does not "
                "make; ask for one step"
            )

    def short_history(self, windows: Sequence[Sized]) -> str | None:
        """Why the volatility of a request's windows is doubtful, in one line; None when all have enough values."""
        enough = max(encoding.values_of_volatility for encoding in self._forecaster.encodings)
        short = [count for count in map(len, windows) if count < enough]
        if not short:
            return None
        counts = " to ".join(map(str, sorted({min(short), max(short)})))
        return (
            f"{_those(len(short), windows)} {counts} values, but this model computes its volatility from {enough}; "
            f"give {self.rows_used}"
        )

    def market_doubt(self, symbols: Collection[str] = (), horizon: int = 1, remedy: str = "") -> str | None:
        """Why forecasts do not see what the market did, in one line; None when they do, or the model never does.

        Args:
            symbols: the symbols whose windows, all ending with the same session, are known together.
            horizon: number of steps.
            remedy: how to give the windows of more symbols.
        """
        if self.whole.market is None:
            return None
        if horizon > 1:
            return "this forecast does not know what the market did; only a forecast of one step does"
        needed = least_symbols(len(self.whole.symbols))
        if len(self.whole.symbols.keys() & set(symbols)) >= needed:
            return None
        return (
            f"this forecast does not know what the market did; the model needs windows of at least {needed} of its "
            f"symbols, which all end with the same session{remedy and '; '}{remedy}"
        )

    def outside_training_range(self, values: Sequence[float] | Sequence[Sequence[float]]) -> bool:
        """Whether any of the last ``sequence_length`` prices of one window is outside the training range.

        False for checkpoints of the original system, which do not store their training range.
        """
        window: Any = values[-self.sequence_length :]
        if len(self.columns) > 1:
            window = [row[0] for row in window]
        low, high = self._train_range
        return bool(min(window) < low or max(window) > high)

    def range_doubt(self, windows: Sequence[Sequence[float] | Sequence[Sequence[float]]]) -> str | None:
        """Why the prices of a request's windows are doubtful, in one line; None when the training range has them."""
        outside = sum(map(self.outside_training_range, windows))
        if not outside:
            return None
        low, high = self._train_range
        return (
            f"{_those(outside, windows)} prices outside the training range of {low:g} to {high:g}; trust the forecast "
            "less"
        )

    @property
    def _train_range(self) -> tuple[float, float]:
        return self.checkpoint.train_range or (-math.inf, math.inf)

    def predict_next(self, values: Sequence[float] | Sequence[Sequence[float]]) -> float:
        """The next price after ``values``, oldest first; see ``predict``."""
        return float(self.predict([values])[0])

    def _normalized(self, windows: ArrayLike) -> Array:
        values = self.check(windows)
        return self._encoding.with_market(self._encoding.normalization.normalize(values))

    def check(self, windows: ArrayLike) -> Array:
        """Validate windows and return the part that the model uses, (n, up to ``rows_used``, columns).

        Windows shorter than the longest one are NaN where they have no values.

        Raises:
            WindowError: as ``predict``.
        """
        if isinstance(windows, list) and len({len(window) for window in windows}) > 1:
            return self._checked_together([self.check([window])[0] for window in windows])
        try:
            values = np.asarray(windows, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise WindowError(
                "a window must be numbers, or rows of numbers, all of the same length"
            ) from None
        if values.ndim == 2 and len(self.columns) == 1:
            values = values[:, :, np.newaxis]
        elif values.ndim != 3 or len(self.columns) == 1 or values.shape[2] != len(self.columns):
            raise WindowError(f"{_expected_form(self.columns)}, oldest first; got {_form_of(values)}")
        length = self.sequence_length
        if values.shape[1] < length:
            raise WindowError(
                f"{values.shape[1]} values are too few: this model needs at least {length}, oldest first"
            )
        values = values[:, -self.rows_used :]
        wrong = ~np.isfinite(values)
        if wrong.any():
            raise WindowError(f"{_first(values, wrong)}: every value must be a finite number")
        if self._encoding.normalization.feature.log and (wrong := values <= 0).any():
            raise WindowError(f"{_first(values, wrong)}: this model needs positive prices")
        return values

    def _checked_together(self, windows: Sequence[Array]) -> Array:
        together = np.full((len(windows), max(map(len, windows)), len(self.columns)), np.nan)
        for i, window in enumerate(windows):
            together[i, -len(window) :] = window
        return together


def _those(count: int, windows: Sized) -> str:
    """The beginning of a line on some of the windows of a request."""
    return "the window has" if len(windows) == 1 else f"{count} of the windows have"


def _expected_form(columns: Sequence[str]) -> str:
    if len(columns) == 1:
        return f"this model takes plain numbers ({columns[0]})"
    return f"this model takes each bar as a row of {len(columns)} values ({', '.join(columns)})"


def _form_of(values: Array) -> str:
    if values.ndim == 2:
        return "plain numbers"
    return f"rows of {values.shape[2]}" if values.ndim == 3 else f"an array of shape {values.shape}"


def _first(values: Array, wrong: NDArray[np.bool_]) -> str:
    window, day, column = (int(index) for index in np.argwhere(wrong)[0])
    where = f"number {values.shape[1] - day} from the end"
    if values.shape[2] > 1:
        where += f", column {column + 1}"
    if len(values) > 1:
        where += f" of window {window}"
    return f"value {values[window, day, column]} ({where})"


def forecast_together(
    predictors: Sequence[Predictor], windows: Sequence[Any], market: Array | None = None
) -> list[Prediction]:
    """The next prices of several symbols of one model, from one window each, with one run of its networks.

    Args:
        predictors: predictors of the symbols; they share an engine.
        windows: a window for each symbol, as in ``Predictor.predict``.
        market: what the market did in the session of each value, as ``market_of``; None where it is not known.

    Raises:
        BadWindow: for the first window that does not fit the model.
    """
    with np.errstate(all="ignore"):
        normalized = _normalized_each(predictors, windows)
        rows = [
            predictor._encoding.with_market(
                own, None if market is None else market[np.newaxis, -own.shape[1] :]
            )
            for predictor, own in zip(predictors, normalized, strict=True)
        ]
        views, volatility = _inputs_together(predictors, rows)
        outputs = predictors[0].engine(views)
        points, checkpoint = point_forecasts(outputs), predictors[0].checkpoint
        together = distribution(
            checkpoint.config.likelihood, outputs, volatility, checkpoint.calibration_scores
        )
        distributions = together.split() if together else [None] * len(predictors)
        found = []
        for index, (predictor, own) in enumerate(zip(predictors, normalized, strict=True)):
            encoding, last = predictor._encoding, own[:, -1, 0]
            prices = _require_finite_of(index, encoding.prices(points[index : index + 1], last))
            found.append(Prediction(prices, distributions[index], last, encoding))
    return found


def predict_steps_together(predictors: Sequence[Predictor], windows: Sequence[Any], horizon: int) -> Array:
    """The next ``horizon`` prices of several symbols of one model, shape (n, horizon), as ``Predictor.predict_steps``.

    Each step is one run of the model's networks.

    Args:
        predictors: predictors of the symbols; they share an engine.
        windows: a window for each symbol, as in ``Predictor.predict``.
        horizon: number of steps.

    Raises:
        BadWindow: for the first window that does not fit the model.
        WindowError: for more than one step of a model with input columns that it does not forecast.
    """
    predictors[0].require_horizon(horizon)
    prices = np.empty((len(predictors), horizon))
    with np.errstate(all="ignore"):
        normalized = _normalized_each(predictors, windows)
        rows = [each._encoding.with_market(own) for each, own in zip(predictors, normalized, strict=True)]
        for step in range(horizon):
            if step:
                rows = [
                    each._forecaster.followed(own, prices[index : index + 1, step - 1])
                    for index, (each, own) in enumerate(zip(predictors, rows, strict=True))
                ]
            views, _ = _inputs_together(predictors, rows)
            points = point_forecasts(predictors[0].engine(views))
            for index, (each, own) in enumerate(zip(predictors, rows, strict=True)):
                prices[index, step] = each._encoding.prices(points[index : index + 1], own[:, -1, 0])[0]
    for index, steps in enumerate(prices):
        _require_finite_of(index, steps)
    return prices


def _require_finite_of(index: int, prices: Array) -> Array:
    """``require_finite`` for the forecasts from one of several windows.

    Raises:
        BadWindow: when a price is not a finite number.
    """
    try:
        return require_finite(prices)
    except WindowError as error:
        raise BadWindow(index, error) from None


def market_of(predictors: Sequence[Predictor], windows: Sequence[Any]) -> Array | None:
    """What the market did in each of the latest sessions, from windows that end with the same session and skip none.

    Args:
        predictors: predictors of symbols of one model.
        windows: a window for each symbol, as in ``Predictor.predict``.

    Returns:
        The market's columns, shape (rows, 2); None for a model that does not see the market, or when the model knows
        too few of these symbols (``Predictor.market_doubt``).

    Raises:
        BadWindow: for the first window that does not fit the model.
    """
    whole = predictors[0].whole
    symbols = [predictor.checkpoint.config.symbol for predictor in predictors]
    if whole.market is None or predictors[0].market_doubt(symbols):
        return None
    normalized = _normalized_each(predictors, windows)
    known = {
        symbol: own[0, :, 0] / predictor._encoding.normalization.feature.change_std
        for symbol, predictor, own in zip(symbols, predictors, normalized, strict=True)
        if symbol in whole.symbols
    }
    # The window of a symbol that the model has never seen may be the longest.
    count = max(own.shape[1] for own in normalized)
    sessions = [np.arange(count - len(rows) + 1, count) for rows in known.values()]
    return whole.market.columns(moves_of([np.diff(rows) for rows in known.values()], sessions, count))


def _normalized_each(predictors: Sequence[Predictor], windows: Sequence[Any]) -> list[Array]:
    """The normalized rows (1, rows, columns) that each predictor uses of its window.

    Raises:
        BadWindow: for the first window that does not fit the model.
    """
    normalized = []
    for index, (predictor, window) in enumerate(zip(predictors, windows, strict=True)):
        try:
            normalized.append(predictor._encoding.normalization.normalize(predictor.check([window])))
        except WindowError as error:
            raise BadWindow(index, error) from None
    return normalized


def _inputs_together(
    predictors: Sequence[Predictor], rows: Sequence[Array]
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """As ``Forecaster.inputs``, for the rows (1, k, columns) of one window of each of several symbols of one model."""
    encoding = predictors[0]._encoding
    if encoding.sees_changes_alone and len({own.shape for own in rows}) == 1:
        # In units of one symbol, the changes of all are encoded at once, which takes a third of the time.
        unit = encoding.normalization.change_stds
        ratios = [unit / predictor._encoding.normalization.change_stds for predictor in predictors]
        scaled = np.concatenate(rows)
        scaled[..., : len(unit)] *= np.stack(ratios)[:, np.newaxis]
        return predictors[0]._forecaster.inputs(scaled)
    seen = [predictor._forecaster.inputs(own) for predictor, own in zip(predictors, rows, strict=True)]
    views = [np.concatenate(inputs) for inputs in zip(*(inputs for inputs, _ in seen), strict=True)]
    return views, np.concatenate([volatility for _, volatility in seen])


def predict_next_from_values(
    values: Sequence[float], checkpoint_path: str | os.PathLike[str], device: str = "auto"
) -> float:
    """Forecast the next price after ``values`` with the checkpoint at ``checkpoint_path``, as in the original system.

    The checkpoint is loaded once and reused until its file changes.

    Raises:
        CheckpointError: when the file is missing or not a usable checkpoint.
        WindowError: when the values do not fit the model.
    """
    path = Path(checkpoint_path)
    stamp = path.stat() if path.exists() else None
    changed = (stamp.st_mtime_ns, stamp.st_size, stamp.st_ino) if stamp else None
    return _cached_predictor(os.fspath(path), changed, device).predict_next(values)


@functools.lru_cache(maxsize=8)
def _cached_predictor(path: str, changed: tuple[int, int, int] | None, device: str) -> Predictor:
    return Predictor(path, device)
