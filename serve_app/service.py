"""Turn a request's body into an answer's: the work of the two forecast routes, without HTTP or a cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from forecast.config import AgeOptions, parse_settings
from forecast.errors import AgeError, BadWindow, LevelError, UsageError, WindowError
from forecast.inference.prediction import Prediction, describe_intervals
from forecast.inference.predictor import Predictor, forecast_together
from serve_app.batching import Window
from serve_app.metrics import Measurements, short_version
from serve_app.models import ModelNotFound, Models, ServedModel
from serve_app.schemas import (
    BatchRequest,
    BatchRowsRequest,
    ErrorAnswer,
    Options,
    PredictRequest,
    PredictRowsRequest,
    Problem,
    SeriesItem,
    SeriesRequest,
    problems_of,
)

CHUNK_COST = 4e9
"""Multiply-adds that a batch request computes at a time, some tenths of a second on a CPU: after each chunk, other
requests get a turn, and a request past its time limit ends. A chunk has at least one forecast."""
MAX_CHUNK = 256
"""Most windows in a chunk, even where more would be cheap: larger chunks are no faster."""
RETRY_AFTER_S = 1
"""Seconds that a client refused with 503 should wait before it tries again."""

JSON = (b"content-type", b"application/json")

Asked = TypeVar("Asked", PredictRequest | PredictRowsRequest, BatchRequest | BatchRowsRequest)
Kinds = tuple[type[Asked], type[Asked]]
"""The bodies that a route accepts: for a model of one column, and for one of several."""
PREDICT: Kinds[PredictRequest | PredictRowsRequest] = (PredictRequest, PredictRowsRequest)
BATCH: Kinds[BatchRequest | BatchRowsRequest] = (BatchRequest, BatchRowsRequest)

Bounds = NDArray[np.float64]
Dates = NDArray[np.datetime64]

RECENT_DATES = 8
"""Number of a window's last dates that show how weeks and months are labelled."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: status, headers and body."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)


def refuse(status: int, problems: list[Problem], *headers: tuple[bytes, bytes]) -> Answer:
    """Build an answer that says what is wrong, where, and the remedy."""
    return Answer(status, ErrorAnswer(ok=False, detail=problems).model_dump_json().encode(), (JSON, *headers))


def busy(reason: str) -> Answer:
    """Build a 503 answer that says when to try again."""
    problem = Problem(loc=[], msg=reason, type="overloaded")
    return refuse(503, [problem], (b"retry-after", str(RETRY_AFTER_S).encode()))


@dataclass(frozen=True, slots=True)
class When:
    """When a window ends.

    Attributes:
        last: its last dates, oldest first; None where not even the last one is known.
        age: sessions from the model's last training row to the last date, or to now; None where it is not known.
        warnings: reasons to doubt the date or the model.
    """

    last: Dates | None
    age: int | None
    warnings: list[str]


class ForecastService:
    """Answers ``/predict`` and ``/predict/batch``.

    Attributes:
        models: the models that it forecasts with.
        measurements: the counts that it updates.
    """

    def __init__(
        self, models: Models, measurements: Measurements, *, max_forecasts: int, age: AgeOptions | None = None
    ) -> None:
        """Limit each request to ``max_forecasts`` prices, and models to an age."""
        self._age = age or parse_settings(AgeOptions, {})
        self.models, self.measurements = models, measurements
        self._max_forecasts = max_forecasts

    async def predict(self, body: bytes) -> Answer:
        """Answer a ``PredictRequest``, or a ``PredictRowsRequest``."""
        try:
            asked = self._parse(PREDICT, body)
            model = self._unseen(asked) or self._choose(asked)
            horizon, levels = self._require_possible(asked, model, 1)
            when = self._when(asked, model, asked.dates, len(asked.values))
        except Refused as refused:
            return refused.answer
        # Only the values that the model uses are queued; a window that is too short is refused there.
        window = asked.values[-model.predictor.rows_used :]
        bounds: Bounds | None = None
        try:
            if horizon > 1 or asked.horizon is not None:
                (prices,), bounds = await self._forecast_aside(model, [window], horizon, levels)
            elif levels:
                prediction = await model.predictions.forecast(window)
                prices, bounds = prediction.prices.tolist(), prediction.intervals(levels)[:, np.newaxis]
            else:
                prices = [await model.prices.forecast(window)]
        except WindowError as error:
            return refuse(422, [Problem(loc=["body", "values"], msg=str(error), type="window")])
        result: dict[str, Any] = {"prediction": prices[0]}
        if asked.horizon is not None:
            result["predictions"] = prices
        if bounds is not None:
            result["intervals"] = describe_intervals(bounds[0], levels, steps=asked.horizon is not None)
        return self._answer(model, result, [window], when, horizon)

    async def predict_batch(self, body: bytes) -> Answer:
        """Answer a ``BatchRequest``, or a ``BatchRowsRequest``."""
        if b'"series"' in body and _is_of_series(body):
            return await self._predict_series(body)
        try:
            asked = self._parse(BATCH, body)
            model = self._choose(asked)
            horizon, levels = self._require_possible(asked, model, len(asked.windows))
            when = self._when(asked, model, None, 0)
        except Refused as refused:
            return refused.answer
        windows = [values[-model.predictor.rows_used :] for values in asked.windows]
        try:
            prices, bounds = await self._forecast_aside(model, windows, horizon, levels)
        except BadWindow as bad:
            return refuse(422, [Problem(loc=["body", "windows", bad.index], msg=str(bad), type="window")])
        except WindowError as error:
            return refuse(422, [Problem(loc=["body", "windows"], msg=str(error), type="window")])
        steps = asked.horizon is not None
        result: dict[str, Any] = {"predictions": prices if steps else [ahead[0] for ahead in prices]}
        if bounds is not None:
            result["intervals"] = [describe_intervals(window, levels, steps=steps) for window in bounds]
        return self._answer(model, result, windows, when, horizon)

    async def _predict_series(self, body: bytes) -> Answer:
        """Answer a ``SeriesRequest``: one window for each of several symbols."""
        try:
            try:
                asked = SeriesRequest.model_validate_json(body)
            except ValidationError as error:
                raise Refused(refuse(422, problems_of(error, SeriesRequest))) from None
            if asked.last_date is not None:
                message = (
                    "symbols have calendars of their own; send last_date to POST /predict, with one symbol"
                )
                raise Refused(refuse(422, [Problem(loc=["body", "last_date"], msg=message, type="date")]))
            warnings: list[str] = []
            models = [self._model_of(index, item) for index, item in enumerate(asked.series)]
            for model in {id(model.predictor.whole): model for model in models}.values():
                horizon, levels = self._require_possible(asked, model, len(models))
                warnings += self._when(asked, model, None, 0).warnings
        except Refused as refused:
            return refused.answer
        windows = [
            item.values[-model.predictor.rows_used :]
            for item, model in zip(asked.series, models, strict=True)
        ]
        try:
            prices, bounds = await self._forecast_series(models, windows, horizon, levels)
        except BadWindow as bad:
            where: list[str | int] = ["body", "series", bad.index, "values"]
            return refuse(422, [Problem(loc=where, msg=str(bad), type="window")])
        steps = asked.horizon is not None
        for model, window in zip(models, windows, strict=True):
            warnings += [f"{model.symbol[:100]}: {line}" for line in self._doubts(model, [window])]
        answer: dict[str, Any] = {
            "ok": True,
            "symbols": [model.symbol for model in models],
            "predictions": prices if steps else [ahead[0] for ahead in prices],
        }
        if levels:
            answer["intervals"] = [describe_intervals(each, levels, steps=steps) for each in bounds]
        if warnings:
            answer["warnings"] = warnings
        return Answer(200, to_json(answer), (JSON,))

    def _model_of(self, index: int, item: SeriesItem) -> ServedModel:
        """The model that answers for one symbol of a request.

        Raises:
            Refused: when there is none, or the symbol's window does not fit it.
        """
        try:
            unseen = self.models.unseen(item.symbol)
            return unseen.of_window(item.values, item.symbol) if unseen else self.models.choose(item.symbol)
        except (ModelNotFound, WindowError) as error:
            field = "symbol" if isinstance(error, ModelNotFound) else "values"
            problem = Problem(loc=["body", "series", index, field], msg=str(error), type=field)
            raise Refused(refuse(422, [problem])) from None

    async def _forecast_series(
        self, models: Sequence[ServedModel], windows: Sequence[Window], horizon: int, levels: list[float]
    ) -> tuple[list[list[float]], list[Bounds]]:
        """Return forecasts (n, horizon), and each window's bounds (horizon, levels, 2), from a thread.

        Raises:
            BadWindow: when a window does not fit its model.
        """
        if horizon > 1:
            forecasts: list[list[float]] = []
            bounds: list[Bounds] = []
            for index, (model, window) in enumerate(zip(models, windows, strict=True)):
                try:
                    (ahead,), found = await self._forecast_aside(model, [window], horizon, levels)
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
            size = max(1, min(MAX_CHUNK, int(CHUNK_COST / models[indices[0]].cost)))
            for first in range(0, len(indices), size):
                chunk = indices[first : first + size]
                predictors, theirs = [models[at].predictor for at in chunk], [windows[at] for at in chunk]
                try:
                    predictions = await loop.run_in_executor(
                        self.models.threads, forecast_together, predictors, theirs
                    )
                except BadWindow as bad:
                    raise BadWindow(chunk[bad.index], bad) from None
                answers.update(zip(chunk, predictions, strict=True))
        ordered = [answers[index] for index in range(len(models))]
        return [each.prices.tolist() for each in ordered], (
            [each.intervals(levels) for each in ordered] if levels else []
        )

    def _unseen(self, asked: PredictRequest | PredictRowsRequest) -> ServedModel | None:
        """The model of many symbols, for a symbol that it was not trained on; None for other requests.

        Raises:
            Refused: when the window does not fit the model.
        """
        model = self.models.unseen(asked.symbol)
        try:
            return model and model.of_window(asked.values, str(asked.symbol))
        except WindowError as error:
            problem = Problem(loc=["body", "values"], msg=str(error), type="window")
            raise Refused(refuse(422, [problem])) from None

    def _choose(self, asked: Options) -> ServedModel:
        """Choose the model that answers a request.

        Raises:
            Refused: when no served model fits it.
        """
        try:
            return self.models.choose(asked.symbol)
        except ModelNotFound as error:
            problem = Problem(loc=["body", "symbol"], msg=str(error), type="symbol")
            raise Refused(refuse(422, [problem])) from None

    def _parse(self, kinds: Kinds[Asked], body: bytes) -> Asked:
        """Validate a body as plain numbers, which most models take, or else as rows of numbers.

        A body that is neither is described as a request for the models that are served here.

        Raises:
            Refused: when the body is none of ``kinds``.
        """
        plain, rows = kinds
        try:
            return plain.model_validate_json(body)
        except ValidationError as plain_error:
            try:
                return rows.model_validate_json(body)
            except ValidationError as rows_error:
                if (encoding := json.detect_encoding(body)) != "utf-8":
                    message = f"the body looks like {encoding.upper()} text; send JSON in UTF-8"
                    raise Refused(
                        refuse(422, [Problem(loc=["body"], msg=message, type="encoding")])
                    ) from None
                if any(len(model.predictor.columns) > 1 for model in self.models.by_symbol.values()):
                    raise Refused(refuse(422, problems_of(rows_error, rows))) from None
                raise Refused(refuse(422, problems_of(plain_error, plain))) from None

    def _require_possible(self, asked: Options, model: ServedModel, windows: int) -> tuple[int, list[float]]:
        """Return the requested horizon and levels.

        Raises:
            Refused: when the model has no such intervals, cannot forecast so many steps, or the request needs more
                forecasts than allowed.
        """
        horizon, levels = asked.horizon or 1, asked.levels or []
        try:
            model.predictor.require_horizon(horizon)
            if levels:
                model.predictor.require_levels(levels, horizon)
        except WindowError as error:
            raise Refused(
                refuse(422, [Problem(loc=["body", "horizon"], msg=str(error), type="horizon")])
            ) from None
        except LevelError as error:
            raise Refused(
                refuse(422, [Problem(loc=["body", "levels"], msg=str(error), type="level")])
            ) from None
        forecasts = windows * horizon
        if forecasts > self._max_forecasts:
            message = (
                f"{windows} windows and a horizon of {horizon} are {forecasts} forecasts; "
                f"send at most {self._max_forecasts} in one request"
            )
            where = "windows" if windows > 1 else "horizon"
            raise Refused(refuse(422, [Problem(loc=["body", where], msg=message, type="too_many_forecasts")]))
        return horizon, levels

    def _when(self, asked: Options, model: ServedModel, dates: Sequence[str] | None, values: int) -> When:
        """Find the dates of a window, and the model's age then, or now for a window without dates.

        Args:
            asked: the request.
            model: the model that answers it.
            dates: the dates of its values; None where they are not given.
            values: number of its values.

        Raises:
            Refused: when a date is not one, dates and values do not match, or the model is too old.
        """
        dating, last, warnings = model.predictor.dating, None, []
        try:
            if dates is not None and len(dates) != values:
                raise UsageError(
                    f"{len(dates)} dates are not one for each of the {values} values; send as many"
                )
            given = dates if dates is not None else [asked.last_date] if asked.last_date is not None else None
            if given is not None:
                last = dating.parse(given)
                if asked.last_date is not None and dating.parse([asked.last_date])[0] != last[-1]:
                    raise UsageError(
                        f"last_date {asked.last_date} is not the last of the dates, {given[-1]}; send one of the two"
                    )
                if (doubt := dating.doubt(last[-1])) is not None:
                    warnings.append(doubt)
            age = model.age(None if last is None else last[-1])
            if (complaint := self._age.complaint(age)) is not None:
                warnings.append(complaint)
        except AgeError as error:
            raise Refused(refuse(503, [Problem(loc=[], msg=str(error), type="model_too_old")])) from None
        except (UsageError, WindowError) as error:
            field = "last_date" if dates is None else "dates"
            raise Refused(refuse(422, [Problem(loc=["body", field], msg=str(error), type="date")])) from None
        return When(None if last is None else last[-RECENT_DATES:], age, warnings)

    async def _forecast_aside(
        self, model: ServedModel, windows: Sequence[Window], horizon: int, levels: list[float]
    ) -> tuple[list[list[float]], Bounds | None]:
        """Return forecasts (n, horizon), and bounds (n, horizon, levels, 2) if there are levels, from a thread.

        The thread computes them in chunks: they may take long, and other requests use the same thread.

        Raises:
            BadWindow: when a window does not fit the model.
        """
        loop, forecasts, bounds = asyncio.get_running_loop(), [], []
        at_a_time = max(1, int(CHUNK_COST / model.cost))
        size = min(at_a_time, MAX_CHUNK)
        for first in range(0, len(windows), size):
            chunk = windows[first : first + size]
            if levels and horizon == 1:
                piece, their_bounds = await loop.run_in_executor(
                    self.models.threads, _piece_with_intervals, model.predictor, chunk, levels, first
                )
                forecasts += piece
                bounds.append(their_bounds)
                continue
            prices: list[list[float]] = [[] for _ in chunk]
            while (left := horizon - len(prices[0])) > 0:
                # Each piece continues from the forecasts of the previous one.
                past = [
                    model.predictor.continued(window, done)
                    for window, done in zip(chunk, prices, strict=True)
                ]
                steps = min(left, max(1, at_a_time // len(chunk)))
                piece = await loop.run_in_executor(
                    self.models.threads, _forecast_piece, model.predictor, past, steps, first
                )
                prices = [[*done, *more] for done, more in zip(prices, piece, strict=True)]
            forecasts += prices
        if levels and horizon > 1:
            for index, (window, ahead) in enumerate(zip(windows, forecasts, strict=True)):
                bounds.append(
                    await loop.run_in_executor(
                        self.models.threads, _intervals_ahead, model.predictor, window, ahead, levels, index
                    )
                )
        return forecasts, np.concatenate(bounds) if bounds else None

    def _answer(
        self,
        model: ServedModel,
        result: dict[str, Any],
        windows: Sequence[Window],
        when: When,
        horizon: int,
    ) -> Answer:
        answer, warnings = {"ok": True, **result}, list(when.warnings)
        if when.last is not None:
            dated = model.predictor.dating.describe(when.last, horizon)
            answer |= dated
            if not dated:
                warnings.append(model.predictor.dating.unknown)
        if when.age is not None:
            answer["model_age"] = when.age
        answer |= model.common_fields
        warnings += self._doubts(model, windows)
        if warnings:
            answer["warnings"] = warnings
        version = (b"x-model-version", short_version(model.version).encode())
        return Answer(200, to_json(answer), (JSON, version))

    def _doubts(self, model: ServedModel, windows: Sequence[Window]) -> list[str]:
        """Reasons to doubt the forecasts of these windows, one line each."""
        warnings = []
        outside = [
            index for index, window in enumerate(windows) if model.predictor.outside_training_range(window)
        ]
        if outside:
            self.measurements.out_of_range[model.symbol] += len(outside)
            low, high = model.predictor.checkpoint.train_range or (0, 0)
            which = "the window has" if len(windows) == 1 else f"{len(outside)} of the windows have"
            warnings.append(
                f"{which} prices outside the training range of {low:g} to {high:g}; trust the forecast less"
            )
        if (complaint := model.predictor.short_history(windows)) is not None:
            warnings.append(complaint)
        if not model.seen:
            warnings.append(
                f"the model was not trained on {model.symbol[:100]}: its prices are normalized by the values of the "
                "window alone"
            )
        return warnings


def _is_of_series(body: bytes) -> bool:
    """Whether a body is an object with ``series`` and without ``windows``."""
    try:
        asked = from_json(body)
    except ValueError:
        return False
    return isinstance(asked, dict) and "series" in asked and "windows" not in asked


class Refused(Exception):
    """A request must be refused with ``answer``."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


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
    predictor: Predictor, window: Window, prices: list[float], levels: list[float], index: int
) -> Bounds:
    """Bounds (1, horizon, levels, 2) around a window's point forecasts (horizon,); runs in a thread.

    Raises:
        BadWindow: when a bound is not a finite number.
    """
    try:
        return predictor.predict_intervals([window], levels, len(prices), [prices])
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
