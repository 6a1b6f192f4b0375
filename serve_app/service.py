"""Turn a request's body into an answer's: the work of the two forecast routes, without HTTP or a cluster."""

from __future__ import annotations

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
from forecast.inference.prediction import describe_intervals
from forecast.prices.timeline import RECENT_DATES
from serve_app.batching import Window
from serve_app.catalog import ModelNotFound
from serve_app.computing import Bounds, forecast_aside, forecast_series
from serve_app.metrics import Measurements, label_of, short_version
from serve_app.models import Models
from serve_app.recording import Recorder
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
from serve_app.served_model import ServedModel

RETRY_AFTER_S = 1
"""Seconds that a client refused with 503 should wait before it tries again."""

JSON = (b"content-type", b"application/json")

Asked = TypeVar("Asked", PredictRequest | PredictRowsRequest, BatchRequest | BatchRowsRequest)
Kinds = tuple[type[Asked], type[Asked]]
"""The bodies that a route accepts: for a model of one column, and for one of several."""
PREDICT: Kinds[PredictRequest | PredictRowsRequest] = (PredictRequest, PredictRowsRequest)
BATCH: Kinds[BatchRequest | BatchRowsRequest] = (BatchRequest, BatchRowsRequest)

Dates = NDArray[np.datetime64]

TO_SEE_THE_MARKET = "send them in series to POST /predict/batch, with same_session"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: status, headers and body."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)


def refuse(status: int, problems: list[Problem], *headers: tuple[bytes, bytes]) -> Answer:
    """Build an answer that says what is wrong, where, and the remedy."""
    return Answer(status, ErrorAnswer(ok=False, detail=problems).model_dump_json().encode(), (JSON, *headers))


def refuse_symbol(error: ModelNotFound, where: list[str | int]) -> Answer:
    """Build the answer for a symbol, at ``where`` in the request, that has no usable model."""
    return refuse(error.status, [Problem(loc=where, msg=str(error), type=error.kind)])


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
        self,
        models: Models,
        measurements: Measurements,
        *,
        max_forecasts: int,
        age: AgeOptions | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """Limit each request to ``max_forecasts`` prices, and models to an age; offer ``recorder`` what is answered."""
        self._age = age or parse_settings(AgeOptions, {})
        self.models, self.measurements = models, measurements
        self._max_forecasts, self._recorder = max_forecasts, recorder

    async def predict(self, body: bytes) -> Answer:
        """Answer a ``PredictRequest``, or a ``PredictRowsRequest``."""
        try:
            asked = self._parse(PREDICT, body)
            model = await self._unseen(asked, ["body"]) or await self._choose(
                asked.symbol, ["body", "symbol"]
            )
            horizon, levels = self._require_possible(asked, model)
            self._require_few(asked, 1, "horizon")
            when = self._when(asked, model, asked.dates, len(asked.values))
        except Refused as refused:
            return refused.answer
        # Only the values that the model uses are queued; a window that is too short is refused there.
        window = asked.values[-model.predictor.rows_used :]
        bounds: Bounds | None = None
        try:
            if horizon > 1 or asked.horizon is not None:
                (prices,), bounds = await forecast_aside(
                    self.models.threads, model, [window], horizon, levels
                )
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
        answer = self._answer(model, result, [window], when, horizon)
        if self._recorder is not None:
            self._recorder.offer(model.symbol, model.version, body, answer.body)
        return answer

    async def predict_batch(self, body: bytes) -> Answer:
        """Answer a ``BatchRequest``, or a ``BatchRowsRequest``."""
        if b'"series"' in body and _is_of_series(body):
            return await self._predict_series(body)
        try:
            asked = self._parse(BATCH, body)
            model = await self._choose(asked.symbol, ["body", "symbol"])
            horizon, levels = self._require_possible(asked, model)
            self._require_few(asked, len(asked.windows), "windows")
            when = self._when(asked, model, None, 0)
        except Refused as refused:
            return refused.answer
        windows = [values[-model.predictor.rows_used :] for values in asked.windows]
        try:
            prices, bounds = await forecast_aside(self.models.threads, model, windows, horizon, levels)
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
            # Before any model is loaded: the request holds all of them until it is answered.
            self._require_few(asked, len(asked.series), "series")
            warnings: list[str] = []
            models = [await self._model_of(index, item) for index, item in enumerate(asked.series)]
            for model in {id(model.predictor.whole): model for model in models}.values():
                horizon, levels = self._require_possible(asked, model)
                warnings += self._when(asked, model, None, 0).warnings
                together = [item.symbol for item in asked.series] if asked.same_session else []
                if (doubt := model.predictor.market_doubt(together, horizon, TO_SEE_THE_MARKET)) is not None:
                    warnings.append(doubt)
        except Refused as refused:
            return refused.answer
        windows = [
            item.values[-model.predictor.rows_used :]
            for item, model in zip(asked.series, models, strict=True)
        ]
        try:
            prices, bounds = await forecast_series(
                self.models.threads, models, windows, horizon, levels, same_session=asked.same_session
            )
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

    async def _model_of(self, index: int, item: SeriesItem) -> ServedModel:
        """The model that answers for one symbol of a request.

        Raises:
            Refused: when there is none, or the symbol's window does not fit it.
        """
        where: list[str | int] = ["body", "series", index]
        unseen = await self._unseen(item, where)
        return unseen or await self._choose(item.symbol, [*where, "symbol"])

    async def _unseen(
        self, asked: PredictRequest | PredictRowsRequest | SeriesItem, where: list[str | int]
    ) -> ServedModel | None:
        """The model of many symbols, for a symbol that it was not trained on; None for other requests.

        Args:
            asked: the window and its symbol.
            where: its place in the request.

        Raises:
            Refused: when the model cannot be used, or the window does not fit it.
        """
        try:
            model = await self.models.unseen(asked.symbol)
            return model and model.of_window(asked.values, str(asked.symbol))
        except ModelNotFound as error:
            raise Refused(refuse_symbol(error, [*where, "symbol"])) from None
        except WindowError as error:
            problem = Problem(loc=[*where, "values"], msg=str(error), type="window")
            raise Refused(refuse(422, [problem])) from None

    async def _choose(self, symbol: str | None, where: list[str | int]) -> ServedModel:
        """Choose the model that answers for a symbol, which stands at ``where`` in the request.

        Raises:
            Refused: when there is none, or it cannot be used.
        """
        try:
            return await self.models.choose(symbol)
        except ModelNotFound as error:
            raise Refused(refuse_symbol(error, where)) from None

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
                if self.models.catalog.takes_rows:
                    raise Refused(refuse(422, problems_of(rows_error, rows))) from None
                raise Refused(refuse(422, problems_of(plain_error, plain))) from None

    def _require_possible(self, asked: Options, model: ServedModel) -> tuple[int, list[float]]:
        """Return the requested horizon and levels.

        Raises:
            Refused: when the model has no such intervals, or cannot forecast so many steps.
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
        return horizon, levels

    def _require_few(self, asked: Options, windows: int, field: str) -> None:
        """Check that a request for so many windows, in ``field``, needs no more forecasts than allowed.

        Raises:
            Refused: when it does.
        """
        horizon = asked.horizon or 1
        forecasts = windows * horizon
        if forecasts > self._max_forecasts:
            message = (
                f"{windows} windows and a horizon of {horizon} are {forecasts} forecasts; "
                f"send at most {self._max_forecasts} in one request"
            )
            where = field if windows > 1 else "horizon"
            raise Refused(refuse(422, [Problem(loc=["body", where], msg=message, type="too_many_forecasts")]))

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
        if (doubt := model.predictor.market_doubt((), horizon, TO_SEE_THE_MARKET)) is not None:
            warnings.append(doubt)
        if warnings:
            answer["warnings"] = warnings
        version = (b"x-model-version", short_version(model.version).encode())
        return Answer(200, to_json(answer), (JSON, version))

    def _doubts(self, model: ServedModel, windows: Sequence[Window]) -> list[str]:
        """Reasons to doubt the forecasts of these windows, one line each."""
        warnings = []
        if (complaint := model.predictor.range_doubt(windows)) is not None:
            label = label_of(model.symbol, self.models.catalog)
            outside = sum(map(model.predictor.outside_training_range, windows))
            self.measurements.out_of_range[label] += outside
            warnings.append(complaint)
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
