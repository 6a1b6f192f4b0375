"""From a request's body to an answer's: what the two forecast routes do, without HTTP or a cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from forecast.errors import WindowError
from forecast.predictor import Predictor
from serve_app.metrics import Measurements, short_version
from serve_app.models import Models, ServedModel, UnknownSymbol
from serve_app.schemas import BatchRequest, ErrorAnswer, PredictRequest, Problem, problems_of

CHUNK_COST = 4e9
"""Multiply-adds forecast at a time in a batch request, some tenths of a second on a CPU: after them others have
their turn, and a request whose time is up ends. At least one forecast."""
MAX_CHUNK = 256
"""Windows forecast at a time even where more would be cheap: more are no faster."""
RETRY_AFTER_S = 1
"""Seconds after which a client that was refused for want of room is told to come again."""

JSON = (b"content-type", b"application/json")

Asked = TypeVar("Asked", PredictRequest, BatchRequest)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: status, headers and body."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)


def refuse(status: int, problems: list[Problem], *headers: tuple[bytes, bytes]) -> Answer:
    """An answer that says what is wrong, where, and the remedy."""
    return Answer(status, ErrorAnswer(ok=False, detail=problems).model_dump_json().encode(), (JSON, *headers))


def busy(reason: str) -> Answer:
    """503, and when to come again."""
    problem = Problem(loc=[], msg=reason, type="overloaded")
    return refuse(503, [problem], (b"retry-after", str(RETRY_AFTER_S).encode()))


class ForecastService:
    """Answers ``/predict`` and ``/predict/batch``.

    Attributes:
        models: what it forecasts with.
        measurements: where it counts.
    """

    def __init__(self, models: Models, measurements: Measurements, *, max_forecasts: int) -> None:
        """Forecast at most ``max_forecasts`` prices a request."""
        self.models, self.measurements = models, measurements
        self._max_forecasts = max_forecasts

    async def predict(self, body: bytes) -> Answer:
        """Answer a ``PredictRequest``."""
        try:
            asked, model = self._understand(PredictRequest, body)
        except Refused as refused:
            return refused.answer
        # Only what the model looks at waits for its turn; a window that is too short is refused there.
        window = asked.values[-model.sequence_length :]
        try:
            if asked.horizon is None:
                prices = [await model.batcher.forecast(window)]
            else:
                (prices,) = await self._forecast_aside(model, [window], asked.horizon)
        except WindowError as error:
            return refuse(422, [Problem(loc=["body", "values"], msg=str(error), type="window")])
        result = f'"prediction": {prices[0]!r}'
        if asked.horizon is not None:
            result += f', "predictions": {prices!r}'
        return self._answer(model, result, [window])

    async def predict_batch(self, body: bytes) -> Answer:
        """Answer a ``BatchRequest``."""
        try:
            asked, model = self._understand(BatchRequest, body)
        except Refused as refused:
            return refused.answer
        forecasts = len(asked.windows) * (asked.horizon or 1)
        if forecasts > self._max_forecasts:
            message = (
                f"{len(asked.windows)} windows and a horizon of {asked.horizon or 1} are {forecasts} forecasts; "
                f"send at most {self._max_forecasts} in one request"
            )
            return refuse(422, [Problem(loc=["body", "windows"], msg=message, type="too_many_forecasts")])
        windows = [values[-model.sequence_length :] for values in asked.windows]
        try:
            prices = await self._forecast_aside(model, windows, asked.horizon or 1)
        except BadWindow as bad:
            return refuse(422, [Problem(loc=["body", "windows", bad.index], msg=str(bad), type="window")])
        answers = prices if asked.horizon is not None else [steps[0] for steps in prices]
        return self._answer(model, f'"predictions": {answers!r}', windows)

    def _understand(self, kind: type[Asked], body: bytes) -> tuple[Asked, ServedModel]:
        """What is asked, and the model that answers it.

        Raises:
            Refused: when the body is not a ``kind``, or no model here is for it.
        """
        try:
            asked = kind.model_validate_json(body)
            return asked, self.models.choose(asked.symbol)
        except ValidationError as error:
            raise Refused(refuse(422, problems_of(error))) from None
        except UnknownSymbol as error:
            problem = Problem(loc=["body", "symbol"], msg=str(error), type="symbol")
            raise Refused(refuse(422, [problem])) from None

    async def _forecast_aside(
        self, model: ServedModel, windows: Sequence[Sequence[float]], horizon: int
    ) -> list[list[float]]:
        """Forecasts (n, horizon) in a thread, some at a time: they may take long, and others wait for it too.

        Raises:
            BadWindow: when a window does not fit the model.
        """
        loop, forecasts = asyncio.get_running_loop(), []
        at_a_time = max(1, int(CHUNK_COST / model.cost))
        size = min(at_a_time, MAX_CHUNK)
        for first in range(0, len(windows), size):
            chunk = windows[first : first + size]
            prices: list[list[float]] = [[] for _ in chunk]
            while (left := horizon - len(prices[0])) > 0:
                # Each piece goes on from what the last one has forecast.
                past = [[*window, *done] for window, done in zip(chunk, prices, strict=True)]
                steps = min(left, max(1, at_a_time // len(chunk)))
                piece = await loop.run_in_executor(
                    self.models.threads, _forecast_piece, model.predictor, past, steps, first
                )
                prices = [[*done, *more] for done, more in zip(prices, piece, strict=True)]
            forecasts += prices
        return forecasts

    def _answer(self, model: ServedModel, result: str, windows: Sequence[Sequence[float]]) -> Answer:
        outside = [
            index for index, window in enumerate(windows) if model.predictor.outside_training_range(window)
        ]
        warnings = ""
        if outside:
            self.measurements.out_of_range[model.symbol] += len(outside)
            low, high = model.predictor.checkpoint.train_range or (0, 0)
            which = "the window has" if len(windows) == 1 else f"{len(outside)} of the windows have"
            text = (
                f"{which} prices outside the training range of {low:g} to {high:g}; trust the forecast less"
            )
            warnings = f', "warnings": {json.dumps([text])}'
        # All numbers are finite, for which Python's notation is JSON's.
        body = f'{{"ok": true, {result}, {model.common_fields}{warnings}}}'
        version = (b"x-model-version", short_version(model.version).encode())
        return Answer(200, body.encode(), (JSON, version))


class Refused(Exception):
    """A request that is answered with a refusal."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class BadWindow(WindowError):
    """One of several windows does not fit the model; ``index`` says which."""

    def __init__(self, index: int, error: WindowError) -> None:
        super().__init__(str(error))
        self.index = index


def _forecast_piece(
    predictor: Predictor, windows: Sequence[Sequence[float]], steps: int, first: int
) -> list[list[float]]:
    """Forecasts (n, steps) of windows that are a request's from ``first`` on; runs in a thread.

    Raises:
        BadWindow: when a window does not fit the model.
    """
    try:
        forecasts: list[list[float]] = predictor.predict_steps(windows, steps).tolist()
        return forecasts
    except WindowError:
        # Most do not fit before anything is computed, which is cheap to find out.
        for look in (predictor.check, lambda window: predictor.predict_steps(window, steps)):
            for index, window in enumerate(windows, first):
                try:
                    look([window])
                except WindowError as error:
                    raise BadWindow(index, error) from None
        raise
