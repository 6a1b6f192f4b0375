"""The HTTP application: routes, limits and who may ask. It runs and is tested without a cluster.

Forecast requests take a path of their own, from the ASGI server straight to ``ForecastService``: a web framework's
way to a route takes longer than a forecast. FastAPI describes the routes and answers the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from forecast.version import installed_version
from serve_app.models import Models, ServedModel, UnknownSymbol
from serve_app.options import ServeOptions
from serve_app.schemas import (
    BatchAnswer,
    ErrorAnswer,
    HealthAnswer,
    ModelAnswer,
    ModelLine,
    ModelsAnswer,
    PredictAnswer,
    Problem,
    RefusalAnswer,
)
from serve_app.service import BATCH, PREDICT, Answer, ForecastService, Kinds, busy, refuse

PAGE = Path(__file__).with_name("page.html")
DRAIN_FACTOR = 256
"""A refused body is read on, unkept, up to this many times the limit: a client that is still sending then
sees the answer instead of a broken connection."""
OPEN_PATHS = frozenset({"/", "/healthz", "/docs", "/openapi.json", "/docs/oauth2-redirect"})
OPEN_PREFIXES = ("/assets/", "/static-offline-docs/")
"""What needs no key: whether the server is up, and pages that do not say anything of a model by themselves."""
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
"""The page loads nothing from elsewhere, and browsers hold it to that."""
ASSET_HEADERS = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}
"""Browsers ask whether a file has changed: a new page must not meet the scripts of an old one."""

Answering = Callable[[bytes], Awaitable[Answer]]


class BodyTooLarge(Exception):
    """A request body is larger than the limit."""


class WebApp:
    """The ASGI application."""

    def __init__(self, service: ForecastService, options: ServeOptions, api_key: str | None) -> None:
        """Answer with ``service``; where ``api_key`` is not empty, only those who know it."""
        self._service, self._options = service, options
        self._key_hash = hashlib.sha256(api_key.encode()).digest() if api_key else None
        self._under_way = 0
        self._forecasts: dict[str, Answering] = {
            "/predict": service.predict,
            "/predict/batch": service.predict_batch,
        }
        self._described = describe_routes(service.models)
        self._known_paths = frozenset(getattr(route, "path", "") for route in self._described.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._described(scope, receive, send)
            return
        started = time.perf_counter()
        # Where the application is mounted, the path of a request begins with the mount's.
        route = scope["path"].removeprefix(scope.get("root_path", ""))
        if self._key_hash is not None and not _is_open(route) and not self._knows_key(scope):
            answer = refuse(
                401,
                [
                    Problem(
                        loc=["header"], msg="send the API key, as Authorization: Bearer KEY", type="api_key"
                    )
                ],
                (b"www-authenticate", b"Bearer"),
            )
        elif scope["method"] == "POST" and (forecast := self._forecasts.get(route)) is not None:
            answer = await self._answer(forecast, receive)
        else:
            await self._described(scope, receive, self._counting(send, route, started))
            return
        length = (b"content-length", str(len(answer.body)).encode())
        await send(
            {"type": "http.response.start", "status": answer.status, "headers": [*answer.headers, length]}
        )
        await send({"type": "http.response.body", "body": answer.body})
        self._count(route, answer.status, started)

    def _count(self, route: str, status: int, started: float) -> None:
        # What is no route of ours is counted together: clients could name any number of them.
        known = route if route in self._known_paths else "other"
        self._service.measurements.answered(known, status, time.perf_counter() - started)

    def _knows_key(self, scope: Scope) -> bool:
        """Compare hashes in constant time: they are equally long whatever was sent."""
        for name, value in scope["headers"]:
            if name == b"authorization":
                value = value.removeprefix(b"Bearer ")
            elif name != b"x-api-key":
                continue
            if hmac.compare_digest(hashlib.sha256(value).digest(), self._key_hash or b""):
                return True
        return False

    def _counting(self, send: Send, route: str, started: float) -> Send:
        async def count(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._count(route, message["status"], started)
            await send(message)

        return count

    async def _answer(self, forecast: Answering, receive: Receive) -> Answer:
        if self._under_way >= self._options.max_queued_requests:
            return busy(f"{self._under_way} requests are under way here; try again later")
        self._under_way += 1
        body = None
        try:
            async with asyncio.timeout(self._options.request_timeout_s):
                body = await _read_body(receive, self._options.max_body_bytes)
                return await forecast(body)
        except BodyTooLarge:
            message = f"the body is larger than {self._options.max_body_bytes} bytes; send fewer values"
            return refuse(413, [Problem(loc=["body"], msg=message, type="body_too_large")])
        except TimeoutError:
            limit = self._options.request_timeout_s
            if body is None:
                message = f"the body did not arrive within {limit:g} seconds; send it faster"
                return refuse(408, [Problem(loc=["body"], msg=message, type="timeout")])
            return busy(f"no answer within {limit:g} seconds; send fewer windows, or try again later")
        finally:
            self._under_way -= 1


def _is_open(route: str) -> bool:
    return not route or route in OPEN_PATHS or route.startswith(OPEN_PREFIXES)


async def _read_body(receive: Receive, limit: int) -> bytes:
    """The whole body, never keeping more than ``limit`` bytes.

    Raises:
        BodyTooLarge: when it is larger, whatever its headers say.
        asyncio.CancelledError: when the client has gone.
    """
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > limit * DRAIN_FACTOR:
            break
        more = message.get("more_body", False)
    if size > limit:
        raise BodyTooLarge
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def build_web_app(service: ForecastService, options: ServeOptions, api_key: str | None = None) -> ASGIApp:
    """The whole application, with CORS where it is asked for."""
    web: ASGIApp = WebApp(service, options, api_key)
    if options.cors_origins:
        web = CORSMiddleware(
            web,
            allow_origins=options.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID"],
            expose_headers=["X-Request-ID", "X-Model-Version"],
        )
    return web


def describe_routes(models: Models) -> FastAPI:
    """FastAPI with every route: the interface's description, and what is not in a hurry."""
    # Its documentation pages bring their scripts along instead of having browsers load them from elsewhere.
    web = FastAPIOffline(
        title="Price forecaster",
        version=installed_version(),
        # Its pages would still ask another host for a logo.
        redoc_url=None,
        description="Forecasts the next price of a symbol from a window of past ones.",
        summary="LSTMs picked from the Pareto fronts of tuning jobs.",
    )

    def forecast_route(path: str, asked: Kinds[Any], answered: type[BaseModel], summary: str) -> None:
        schema = {"anyOf": [kind.model_json_schema() for kind in asked]}

        @web.post(
            path,
            response_model=answered,
            responses=_errors(401, 408, 413, 422, 503),
            openapi_extra={
                "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
            },
            summary=summary,
        )
        async def forecast() -> None:
            """Described here, answered by ``WebApp``, which such a request never gets past."""

    forecast_route("/predict", PREDICT, PredictAnswer, "Forecast the next prices of a window")
    forecast_route("/predict/batch", BATCH, BatchAnswer, "Forecast the next prices of many windows")

    @web.get(
        "/model", response_model=ModelAnswer, responses=_errors(401, 422), summary="Describe a served model"
    )
    async def model(symbol: str | None = None) -> Any:
        try:
            chosen = models.choose(symbol)
        except UnknownSymbol as error:
            return _refusal(422, Problem(loc=["query", "symbol"], msg=str(error), type="symbol"))
        return _describe(chosen, models)

    @web.get("/models", responses=_errors(401), summary="List the served models")
    async def list_models() -> ModelsAnswer:
        return ModelsAnswer(models=[_line(model) for model in models.by_symbol.values()])

    @web.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE, headers={"content-security-policy": PAGE_POLICY, **ASSET_HEADERS})

    # The page's look is that of the reports.
    web.mount("/assets", Assets(packages=[("serve_app", "assets"), ("forecast", "assets")]))

    @web.get("/healthz", summary="Tell readiness")
    async def healthz() -> HealthAnswer:
        return HealthAnswer()

    @web.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        """What is no route gets the same form of answer as what is wrong with a body."""
        loc, message = "path", str(error.detail)
        if error.status_code == 404:
            message = f"there is no {request.url.path}; GET /docs shows what there is"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            loc, message = "method", f"{request.url.path} does not take {request.method}; use {allowed}"
        problem = Problem(loc=[loc], msg=message, type=HTTPStatus(error.status_code).name.lower())
        return _refusal(error.status_code, problem, error.headers)

    return web


def _refusal(status: int, problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(ErrorAnswer(ok=False, detail=[problem]).model_dump(), status, headers)


class Assets(StaticFiles):
    """Style sheets and scripts."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """A file, with ``ASSET_HEADERS``."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(ASSET_HEADERS)
        return response


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer} for status in statuses}


def _line(model: ServedModel) -> ModelLine:
    return ModelLine(
        symbol=model.symbol,
        feature=model.feature,
        sequence_length=model.sequence_length,
        columns=list(model.predictor.columns),
        sha256=model.version,
        checkpoint_path=model.predictor.path,
    )


def _describe(model: ServedModel, models: Models) -> ModelAnswer:
    checkpoint, network = model.predictor.checkpoint, model.predictor.network
    refusal = models.refusal
    return ModelAnswer(
        **_line(model).model_dump(),
        target=checkpoint.config.target,
        likelihood=checkpoint.config.likelihood,
        widest_level=model.predictor.widest_level,
        trained_on=checkpoint.provenance,
        split=checkpoint.split,
        metrics_validation=checkpoint.metrics_validation,
        metrics_test=checkpoint.metrics_test,
        persistence=checkpoint.persistence,
        intervals=checkpoint.intervals,
        configurations_tried=checkpoint.configurations_tried,
        trial_number=checkpoint.trial_number,
        config=checkpoint.config.model_dump(mode="json"),
        versions=checkpoint.versions,
        created=checkpoint.created,
        train_range=checkpoint.train_range,
        latest_window=checkpoint.latest_window,
        device=str(network.device),
        engine=network.engine,
        refused=RefusalAnswer(reason=refusal.reason, at=refusal.at) if refusal else None,
    )
