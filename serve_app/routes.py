"""The described routes: the OpenAPI document of the whole interface, and the routes that are not on the fast path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, BeforeValidator, Field
from starlette.exceptions import HTTPException

from forecast.errors import LedgerError, LevelError
from forecast.live.limits import MOST_SESSIONS
from forecast.model.header import Header
from forecast.names import did_you_mean, split_names
from forecast.scores.metrics import METRICS
from forecast.version import installed_version
from serve_app.catalog import Catalog, ModelFile, ModelNotFound, Stored
from serve_app.live import LiveLedger, NoLedger
from serve_app.models import Models
from serve_app.schemas import (
    MAX_LEVELS,
    MODELS_PER_PAGE,
    MOST_PER_PAGE,
    MOST_RECORDS,
    RECORDS_PER_PAGE,
    BatchAnswer,
    BatchRequest,
    BatchRowsRequest,
    ErrorAnswer,
    HealthAnswer,
    LiveRecord,
    ModelAnswer,
    ModelLine,
    ModelsAnswer,
    PredictAnswer,
    PredictRequest,
    PredictRowsRequest,
    Problem,
    PublishedAnswer,
    PublishedForecast,
    RefusalAnswer,
    ScoresAnswer,
    SeriesAnswer,
    SeriesRequest,
    UnusableModel,
)
from serve_app.served_model import ServedModel

FORECAST = "/forecast"
OF_SYMBOL = f"{FORECAST}/{{symbol}}"
"""The route of one symbol, as it is counted."""
LEVELS = [0.5, 0.9]
"""Levels of published intervals unless others are asked for."""

ASK, MODELS, PUBLISHED, HEALTH = "forecasts", "models", "published", "health"
"""The groups of routes: generated clients have a module for each."""

Offset = Annotated[int, Query(ge=0, description="number of entries to skip")]
Limit = Annotated[int, Query(ge=1, le=MOST_PER_PAGE, description="most entries in the answer")]
Text = Annotated[
    str,
    Query(
        max_length=100,
        description="text that the symbols contain, in any case; those that begin with it come first",
    ),
]
Levels = Annotated[
    list[Annotated[float, Field(gt=0, lt=1)]],
    BeforeValidator(split_names),
    Query(
        min_length=1,
        max_length=MAX_LEVELS,
        description="levels of central intervals, whole percentages such as 0.9, repeated or separated by commas",
    ),
]

Answered = TypeVar("Answered", bound=BaseModel)

PAGE = Path(__file__).with_name("page.html")
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
"""The page loads nothing from other hosts, and browsers enforce that."""
BODY = "The body is JSON in UTF-8, plain or packed with gzip (`Content-Encoding: gzip`)."
ASSET_HEADERS = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}
"""Browsers check whether a file has changed: a new page must not run with an old page's scripts."""


def describe_routes(models: Models, ledger: LiveLedger) -> FastAPI:
    """Build a FastAPI application that describes every route, and answers those that are not forecasts."""
    # Its documentation pages include their scripts: browsers need not load them from another host.
    web = FastAPIOffline(
        title="Price forecaster",
        version=installed_version(),
        # ReDoc would still load a logo from another host.
        redoc_url=None,
        description="Forecasts the next price of a symbol from a window of past prices.",
        summary="LSTMs picked from the Pareto fronts of tuning jobs.",
    )

    def forecast_route(path: str, name: str, answered: Any, summary: str) -> Callable[[Any], Any]:
        return web.post(
            path,
            operation_id=name,
            tags=[ASK],
            response_model=answered,
            responses=_errors(401, 408, 413, 415, 422, 503),
            summary=summary,
            description=BODY,
        )

    # These two describe their routes; ``serve_app.gateway.WebApp`` answers a request before it gets here.
    @forecast_route("/predict", "predict", PredictAnswer, "Forecast the next prices of a window")
    async def predict(asked: PredictRequest | PredictRowsRequest) -> None: ...

    @forecast_route(
        "/predict/batch",
        "predict_batch",
        BatchAnswer | SeriesAnswer,
        "Forecast the next prices of many windows, of one symbol or of several",
    )
    async def predict_batch(asked: BatchRequest | BatchRowsRequest | SeriesRequest) -> None: ...

    @web.get(
        "/model",
        operation_id="get_model",
        tags=[MODELS],
        response_model=ModelAnswer,
        responses=_errors(401, 422, 503),
        summary="Describe a served model",
    )
    async def model(symbol: str | None = None) -> Any:
        try:
            chosen = await models.choose(symbol)
        except ModelNotFound as error:
            problem = Problem(loc=["query", "symbol"], msg=str(error), type=error.kind)
            return _refusal(error.status, problem)
        return _describe(chosen, models, published=await _is_published(chosen.symbol, ledger))

    @web.get(
        "/models",
        operation_id="list_models",
        tags=[MODELS],
        responses=_errors(401, 422),
        summary="List the served models",
    )
    async def list_models(offset: Offset = 0, limit: Limit = MODELS_PER_PAGE, q: Text = "") -> ModelsAnswer:
        return await _page(models.catalog, q, offset, limit)

    @web.get(
        FORECAST,
        operation_id="list_forecasts",
        tags=[PUBLISHED],
        responses=_errors(401, 404, 422, 503),
        summary="List the published forecasts",
    )
    async def list_forecasts(
        level: Levels = LEVELS, offset: Offset = 0, limit: Limit = MODELS_PER_PAGE, q: Text = ""
    ) -> PublishedAnswer:
        found, total = await ledger.ask(lambda record: record.forecasts(q, offset, limit, level))
        return PublishedAnswer(
            forecasts=[_plain(PublishedForecast, each) for each in found],
            total=total,
            next_offset=_next_offset(offset, limit, total),
        )

    @web.get(
        f"{FORECAST}/{{symbol:path}}",
        operation_id="get_forecast",
        tags=[PUBLISHED],
        response_model=PublishedForecast,
        responses=_errors(401, 404, 422, 503),
        summary="Get the published forecast of a symbol",
    )
    async def forecast_of(
        symbol: str,
        level: Levels = LEVELS,
        sessions: Annotated[
            int,
            Query(ge=0, le=MOST_SESSIONS, description="most earlier forecasts, those of the last sessions"),
        ] = 0,
    ) -> Any:
        found = await ledger.ask(lambda record: record.forecast(symbol, level, sessions))
        if found is not None:
            return _plain(PublishedForecast, found)
        close = did_you_mean(symbol[:100], await ledger.ask(lambda record: record.symbols()))
        message = f"there is no published forecast of {symbol[:100]!r}; {close or 'GET /forecast lists them'}"
        return _refusal(404, Problem(loc=["path", "symbol"], msg=message, type="symbol"))

    @web.get(
        "/scores",
        operation_id="get_scores",
        tags=[PUBLISHED],
        responses=_errors(401, 404, 422, 503),
        summary="Get the scores of the published forecasts",
    )
    async def scores(
        symbol: Annotated[
            str | None,
            Query(max_length=100, description="only the models that publish forecasts of this symbol"),
        ] = None,
        name: Annotated[
            str | None, Query(max_length=100, description="only the model of this name in the model store")
        ] = None,
        sessions: Annotated[
            int | None,
            Query(
                ge=1,
                le=MOST_SESSIONS,
                description="number of last sessions, of all versions; without it, those since the last promotion",
            ),
        ] = None,
        offset: Offset = 0,
        limit: Annotated[
            int, Query(ge=1, le=MOST_RECORDS, description="most records in the answer")
        ] = RECORDS_PER_PAGE,
    ) -> ScoresAnswer:
        found, total = await ledger.ask(
            lambda record: record.live(
                name=name, symbol=symbol, sessions=sessions, offset=offset, limit=limit
            )
        )
        return ScoresAnswer(
            records=[_plain(LiveRecord, each) for each in found],
            total=total,
            next_offset=_next_offset(offset, limit, total),
        )

    @web.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE, headers={"content-security-policy": PAGE_POLICY, **ASSET_HEADERS})

    # The page shares the style sheet of the reports.
    web.mount("/assets", Assets(packages=[("serve_app", "assets"), ("forecast", "assets")]))

    @web.get("/healthz", operation_id="get_health", tags=[HEALTH], summary="Report readiness")
    async def healthz() -> HealthAnswer:
        return HealthAnswer()

    @web.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        """Refuse unknown routes and methods in the same form as bad bodies."""
        loc, message = "path", str(error.detail)
        if error.status_code == 404:
            message = f"there is no {request.url.path}; GET /docs lists the routes"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            loc, message = "method", f"{request.url.path} does not take {request.method}; use {allowed}"
        problem = Problem(loc=[loc], msg=message, type=HTTPStatus(error.status_code).name.lower())
        return _refusal(error.status_code, problem, error.headers)

    @web.exception_handler(LedgerError)
    async def no_ledger(request: Request, error: LedgerError) -> JSONResponse:
        """Say why published forecasts and scores cannot be had, and the remedy."""
        status, kind = (404, "no_ledger") if isinstance(error, NoLedger) else (503, "ledger")
        return _refusal(status, Problem(loc=[], msg=str(error), type=kind))

    @web.exception_handler(LevelError)
    async def unknown_level(request: Request, error: LevelError) -> JSONResponse:
        """Refuse a level of which the ledger keeps no intervals."""
        return _refusal(422, Problem(loc=["query", "level"], msg=str(error), type="level"))

    @web.exception_handler(RequestValidationError)
    async def invalid_query(request: Request, error: RequestValidationError) -> JSONResponse:
        """Refuse a query in the same form."""
        first = error.errors()[0]
        name = first["loc"][1]
        message = f"{first['msg'][0].lower()}{first['msg'][1:]}; correct {name} in the query, or leave it out"
        return _refusal(422, Problem(loc=["query", name], msg=message, type=first["type"]))

    return web


def _plain(answer: type[Answered], found: object) -> Answered:
    """The fields of an answer from an object's attributes of the same names."""
    return answer.model_validate(found, from_attributes=True)


def _next_offset(offset: int, limit: int, total: int) -> int | None:
    return offset + limit if offset + limit < total else None


def _refusal(status: int, problem: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(ErrorAnswer(ok=False, detail=[problem]).model_dump(), status, headers)


class Assets(StaticFiles):
    """Style sheets and scripts."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Answer with a file and ``ASSET_HEADERS``."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(ASSET_HEADERS)
        return response


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorAnswer} for status in statuses}


async def _page(catalog: Catalog, text: str, offset: int, limit: int) -> ModelsAnswer:
    """One page of the models whose symbols contain a text."""
    symbols, refused = catalog.find(text)
    shown = {symbol: catalog.by_symbol[symbol] for symbol in symbols[offset : offset + limit]}
    unread = [file for file in dict.fromkeys(shown.values()) if file.version is None]
    # A model's version is the hash of its file, which takes long to read if it is large.
    for file, version in zip(unread, await asyncio.to_thread(_hashes, unread), strict=True):
        file.version = file.version or version or None
    return ModelsAnswer(
        models=[
            _line(symbol, file.header, file.version or "", file.path, file.stored)
            for symbol, file in shown.items()
        ],
        total=len(symbols),
        next_offset=_next_offset(offset, limit, len(symbols)),
        unusable=[
            UnusableModel(symbol=each.symbol, checkpoint_path=str(each.path), reason=each.reason)
            for each in refused[:limit]
        ],
        total_unusable=len(refused),
    )


def _hashes(files: Sequence[ModelFile]) -> list[str]:
    return [file.hashed() for file in files]


def _line(symbol: str, header: Header, version: str, path: str | Path, stored: Stored | None) -> ModelLine:
    return ModelLine(
        symbol=symbol,
        feature=header.columns[0],
        sequence_length=header.sequence_length,
        values_used=header.rows_used,
        columns=list(header.columns),
        sha256=version,
        checkpoint_path=str(path),
        name=stored.name if stored else None,
        version=stored.version if stored else None,
    )


async def _is_published(symbol: str, ledger: LiveLedger) -> bool:
    """Whether the ledger has a published forecast of a symbol; a ledger that cannot be used has none."""
    try:
        return await ledger.ask(lambda record: record.publishes(symbol))
    except LedgerError:
        return False


def _describe(model: ServedModel, models: Models, *, published: bool) -> ModelAnswer:
    predictor, refusal = model.predictor, models.refusal
    checkpoint, engine = predictor.checkpoint, predictor.engine
    return ModelAnswer(
        **_line(
            model.symbol, Header.of(checkpoint), model.version, predictor.path, Stored.at(predictor.path)
        ).model_dump(),
        target=checkpoint.config.target,
        likelihood=checkpoint.config.likelihood,
        volatility=checkpoint.config.volatility,
        members=len(checkpoint.members),
        widest_level=predictor.widest_level,
        many_steps=not checkpoint.columns_not_forecast,
        trained_on=checkpoint.provenance,
        trained_until=checkpoint.trained_until,
        model_age=predictor.dating.age(),
        split=checkpoint.split,
        scored_model=checkpoint.scored_model,
        metric_units={name: metric.unit for name, metric in METRICS.items() if metric.unit},
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
        device=str(engine.device),
        engine=engine.name,
        published=published,
        refused=RefusalAnswer(reason=refusal.reason, at=refusal.at) if refusal else None,
    )
