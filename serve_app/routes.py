"""The HTTP application around a predictor; it runs and is tested without a cluster."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from forecast.errors import WindowError
from forecast.predictor import Predictor
from serve_app.schemas import (
    ErrorAnswer,
    HealthAnswer,
    ModelAnswer,
    PredictAnswer,
    PredictRequest,
    Problem,
    problems_of,
)

DRAIN_FACTOR = 256
"""A refused body is read on, unkept, up to this many times the limit: a client that is still sending then
sees the answer instead of a broken connection."""


class BodyTooLarge(Exception):
    """A request body is larger than the limit."""


def build_web_app(predictor: Predictor, *, max_body_bytes: int) -> FastAPI:
    """The web application that answers with ``predictor``.

    Args:
        predictor: the loaded model.
        max_body_bytes: largest request body; a larger one is refused with 413.
    """
    config = predictor.checkpoint.config
    web = FastAPI(
        title="Price forecaster",
        description=f"Forecasts the next {config.feature} of {config.symbol}.",
        summary="An LSTM picked from the Pareto front of a tuning job.",
    )
    about = _describe(predictor)

    @web.post(
        "/predict",
        response_model=PredictAnswer,
        responses={422: {"model": ErrorAnswer}, 413: {"model": ErrorAnswer}},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": PredictRequest.model_json_schema()}},
            }
        },
        summary="Forecast the next price of a window",
    )
    async def predict(request: Request) -> Response:
        # The body is read and parsed by hand: bounded before it is kept, strict, and in one pass from bytes
        # to numbers; the framework's own way takes longer than the model.
        try:
            body = await _read_body(request, max_body_bytes)
        except BodyTooLarge:
            message = f"the body is larger than {max_body_bytes} bytes; send fewer values"
            return _refuse(413, [Problem(loc=["body"], msg=message, type="body_too_large")])
        try:
            values = PredictRequest.model_validate_json(body).values
        except ValidationError as error:
            return _refuse(422, problems_of(error))
        try:
            # On the event loop: a thread would cost more than a forecast of a small model.
            prediction = predictor.predict_next(values)
        except WindowError as error:
            return _refuse(422, [Problem(loc=["body", "values"], msg=str(error), type="window")])
        answer = {
            "ok": True,
            "prediction": prediction,
            "checkpoint_path": predictor.path,
            "sequence_length": config.sequence_length,
            "symbol": config.symbol,
            "feature": config.feature,
        }
        return Response(json.dumps(answer, allow_nan=False), media_type="application/json")

    @web.get("/model", summary="Describe the served model")
    async def model() -> ModelAnswer:
        return about

    @web.get("/healthz", summary="Tell readiness")
    async def healthz() -> HealthAnswer:
        return HealthAnswer()

    return web


async def _read_body(request: Request, limit: int) -> bytes:
    """The whole body, never keeping more than ``limit`` bytes.

    Raises:
        BodyTooLarge: when it is larger, whatever its headers say.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > limit * DRAIN_FACTOR:
            break
    if size > limit:
        raise BodyTooLarge
    return b"".join(chunks)


def _refuse(status: int, problems: list[Problem]) -> Response:
    return JSONResponse(ErrorAnswer(ok=False, detail=problems).model_dump(), status_code=status)


def _describe(predictor: Predictor) -> ModelAnswer:
    checkpoint = predictor.checkpoint
    config: dict[str, Any] = checkpoint.config.model_dump(mode="json")
    return ModelAnswer(
        checkpoint_path=predictor.path,
        symbol=checkpoint.config.symbol,
        feature=checkpoint.config.feature,
        sequence_length=checkpoint.config.sequence_length,
        target=checkpoint.config.target,
        trained_on=checkpoint.provenance,
        split=checkpoint.split,
        metrics_validation=checkpoint.metrics_validation,
        metrics_test=checkpoint.metrics_test,
        persistence=checkpoint.persistence,
        trial_number=checkpoint.trial_number,
        config=config,
        versions=checkpoint.versions,
        created=checkpoint.created,
        device=str(predictor.device),
    )
