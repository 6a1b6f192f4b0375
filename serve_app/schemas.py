"""Requests and answers of the HTTP interface, and errors that say what is wrong, where, and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypeAliasType

from forecast.live.limits import MOST_CHANGES, MOST_SESSIONS
from forecast.model.forecaster import WIDEST_SIMULATED_LEVEL

MAX_HORIZON = 365
"""Most steps ahead: each costs a forecast, and is worth less than the one before."""

MAX_LEVELS = 20
"""Most intervals per request."""

MODELS_PER_PAGE, MOST_PER_PAGE = 100, 1000
"""Models on a page of ``GET /models`` unless ``limit`` is given, and the largest ``limit``."""

RECORDS_PER_PAGE, MOST_RECORDS = 20, 100
"""Live records on a page of ``GET /scores`` unless ``limit`` is given, and the largest ``limit``."""
NEXT_OFFSET = "offset of the next page; null on the last one"

LENGTH_NEEDED = "number of past prices that a forecast needs"

VALUES_REMEDY = (
    "send past prices as numbers, without quotes, oldest first, at least the model's sequence_length"
)
ROWS_REMEDY = (
    "send past bars, oldest first, each a list of numbers without quotes: the columns of GET /model in order"
)
NO_JSON = "; NaN and Infinity are not JSON numbers"
ROW_WINDOWS_REMEDY = f"send at least one window; for each window, {ROWS_REMEDY}"
WINDOWS_REMEDY = (
    "send at least one window; each is a list of past prices as numbers, without quotes, oldest first"
)


@dataclass(frozen=True)
class Remedy:
    """Tells a client how to correct a field of a request."""

    text: str


Price = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Window = Annotated[list[Price], Field(min_length=1, fail_fast=True)]
Row = Annotated[list[Price], Field(min_length=1, fail_fast=True)]
RowWindow = Annotated[list[Row], Field(min_length=1, fail_fast=True)]
Level = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, lt=1)]


Date = Annotated[str, Field(strict=True, min_length=4, max_length=40)]


class Options(BaseModel):
    """Optional fields of a forecast request. Unknown fields are ignored, as in the original system."""

    model_config = ConfigDict(hide_input_in_errors=True)
    body_remedy: ClassVar[str]
    """The remedy for a body that is not such an object."""

    symbol: Annotated[
        Annotated[str, Field(strict=True, min_length=1, max_length=100)] | None,
        Remedy("send a symbol of GET /models, in quotes"),
    ] = Field(None, description="which model to use; required only if several are served, see GET /models")
    last_date: Annotated[
        Date | None,
        Remedy("send a date such as 2024-12-31, or a time such as 2024-12-31T15:30:00-05:00, in quotes"),
    ] = Field(
        None,
        description="date or time of the last value, ISO 8601, of every window of a batch; the answer then dates its "
        "steps",
    )
    horizon: Annotated[
        Annotated[int, Field(strict=True, ge=1, le=MAX_HORIZON)] | None,
        Remedy(f"send a whole number from 1 to {MAX_HORIZON}, without quotes"),
    ] = Field(
        None,
        description="steps to forecast, each from the previous forecasts; the answer then has predictions",
    )
    levels: Annotated[
        Annotated[list[Level], Field(min_length=1, max_length=MAX_LEVELS)] | None,
        Remedy(
            f"send 1 to {MAX_LEVELS} numbers between 0 and 1, without quotes, for example [0.9], or leave levels out"
        ),
    ] = Field(
        None,
        description="levels of central intervals, for example [0.5, 0.9]; the answer then has intervals",
    )


class DatedRequest(Options):
    """A window whose dates may be given."""

    dates: Annotated[
        list[Date] | None, Remedy("send one date or time of ISO 8601 for each value, in order")
    ] = Field(
        None,
        description="date or time of each value, ISO 8601, oldest first; the answer then dates its steps",
    )


class PredictRequest(DatedRequest):
    """A window of past prices."""

    body_remedy = 'send a JSON object, for example {"values": [120.5, 121.0]}' + NO_JSON
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"values": [120.5, 121.0, 122.3, 121.8, 123.1], "horizon": 3, "levels": [0.5, 0.9]}]
        }
    )

    values: Annotated[Window, Remedy(VALUES_REMEDY)] = Field(
        description="past prices, oldest first, at least the model's sequence_length; the model uses the last "
        "values_used, see GET /model"
    )


class BatchRequest(Options):
    """Many windows of past prices at once."""

    body_remedy = 'send a JSON object, for example {"windows": [[120.5, 121.0], [98.1, 97.9]]}' + NO_JSON
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"windows": [[120.5, 121.0, 122.3], [98.1, 97.9, 98.4]]}]}
    )

    windows: Annotated[list[Window], Field(min_length=1, fail_fast=True), Remedy(WINDOWS_REMEDY)] = Field(
        description="windows, each like values of POST /predict; their lengths may differ"
    )


class SeriesItem(BaseModel):
    """A window of one symbol."""

    model_config = ConfigDict(hide_input_in_errors=True, extra="forbid")

    symbol: Annotated[
        Annotated[str, Field(strict=True, min_length=1, max_length=100)],
        Remedy("send a symbol of GET /models, in quotes"),
    ] = Field(description="the symbol, see GET /models")
    values: Annotated[Window | RowWindow, Remedy(VALUES_REMEDY)] = Field(
        description="past prices, like values of POST /predict"
    )


class SeriesRequest(Options):
    """One window for each of several symbols; for one step, a network runs on many of them at once."""

    body_remedy = (
        'send a JSON object, for example {"series": [{"symbol": "ACME", "values": [120.5, 121.0]}]}' + NO_JSON
    )
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"series": [{"symbol": "ACME", "values": [120.5, 121.0, 122.3]}]}]}
    )

    series: Annotated[
        list[SeriesItem],
        Field(min_length=1, fail_fast=True),
        Remedy('send at least one object with "symbol" and "values"'),
    ] = Field(description="the symbols and their windows")
    same_session: Annotated[
        Annotated[bool, Field(strict=True)], Remedy("send true or false, without quotes, or leave it out")
    ] = Field(
        False,
        description="whether all windows end with the same session and leave no session out; a model that sees the "
        "market then computes the market from them",
    )


class PredictRowsRequest(DatedRequest):
    """A window for a model of several columns."""

    body_remedy = PredictRequest.body_remedy
    values: Annotated[RowWindow, Remedy(ROWS_REMEDY)] = Field(
        description="past bars, oldest first, each a row of the model's columns in the order of GET /model"
    )


class BatchRowsRequest(Options):
    """Many windows for a model of several columns."""

    body_remedy = BatchRequest.body_remedy
    windows: Annotated[list[RowWindow], Field(min_length=1, fail_fast=True), Remedy(ROW_WINDOWS_REMEDY)] = (
        Field(description="windows, each like values of POST /predict")
    )


class Interval(BaseModel):
    """A central interval: according to the model, it holds the price with probability ``level``."""

    level: float
    lower: float | list[float] = Field(
        description="in price units; if horizon was given, a list with one bound per step"
    )
    upper: float | list[float]


class ForecastAnswer(BaseModel):
    """The fields that every answer with forecasts has."""

    ok: bool = Field(True, description="always true in an answer with status 200")
    checkpoint_path: str = Field(description="the checkpoint that is served")
    sequence_length: int = Field(description=LENGTH_NEEDED)
    symbol: str
    feature: str
    forecast_dates: list[str] | None = Field(
        None,
        description="date or time of each step's bar, by the model's calendar; present only if the last date is known",
    )
    forecast_closes: list[str | None] | None = Field(
        None, description="when each of these bars ends, ISO 8601 with the exchange's offset from UTC"
    )
    model_age: int | None = Field(
        None,
        description="sessions after the last training row, up to the window's last date, or now if it is not known",
    )
    warnings: list[str] | None = Field(
        None, description="reasons to doubt the answer; present only if there are any"
    )


class PredictAnswer(ForecastAnswer):
    """The forecast and the model that made it."""

    prediction: float = Field(description="forecast of the next price, in price units")
    predictions: list[float] | None = Field(
        None, description="forecasts of the next prices, one per step; present only if horizon was given"
    )
    intervals: list[Interval] | None = Field(
        None,
        description="one interval for each level; beyond one step ahead, intervals come from simulated paths",
    )


class BatchAnswer(ForecastAnswer):
    """The forecasts of many windows and the model that made them."""

    predictions: list[float] | list[list[float]] = Field(
        description="forecast of each window's next price; if horizon was given, a list with one forecast per step"
    )
    intervals: list[list[Interval]] | None = Field(
        None,
        description="each window's intervals, like those of POST /predict; present only if levels were given",
    )


class SeriesAnswer(BaseModel):
    """The forecasts of one window for each of several symbols."""

    ok: bool = Field(True, description="always true in an answer with status 200")
    symbols: list[str]
    predictions: list[float] | list[list[float]] = Field(
        description="forecast of each symbol's next price; if horizon was given, a list with one forecast per step"
    )
    intervals: list[list[Interval]] | None = Field(
        None,
        description="each symbol's intervals, like those of POST /predict; present only if levels were given",
    )
    warnings: list[str] | None = Field(
        None, description="reasons to doubt the answer; present only if there are any"
    )


class Problem(BaseModel):
    """One problem with a request."""

    loc: list[str | int] = Field(description="where: body, then the field, then the index")
    msg: str = Field(description="what is wrong and the remedy")
    type: str = Field(description="a stable word for the kind of problem")


class ErrorAnswer(BaseModel):
    """Why a request was refused."""

    ok: bool = Field(False, description="always false in an error")
    detail: list[Problem]


class RefusalAnswer(BaseModel):
    """A refused checkpoint."""

    reason: str
    at: str = Field(description="UTC, ISO 8601")


class ModelLine(BaseModel):
    """A summary of one served model."""

    symbol: str
    feature: str
    sequence_length: int = Field(description=LENGTH_NEEDED)
    values_used: int = Field(
        description="number of latest values that a forecast uses where given; sequence_length is what it needs"
    )
    columns: list[str] = Field(
        description="columns that the model sees for each bar; with several columns, values has one row per bar"
    )
    sha256: str = Field(description="hash of the checkpoint's file")
    checkpoint_path: str
    name: str | None = Field(description="its name in the model store; null outside of one")
    version: str | None = Field(description="its version in the model store; null outside of one")


class UnusableModel(BaseModel):
    """A symbol that is not answered for, because its checkpoint cannot be used."""

    symbol: str = Field(description="the symbol; the file's name if the file does not tell its symbol")
    checkpoint_path: str
    reason: str


class ModelsAnswer(BaseModel):
    """The served models, one page of them."""

    models: list[ModelLine]
    total: int = Field(description="number of models on all pages")
    next_offset: int | None = Field(description=NEXT_OFFSET)
    unusable: list[UnusableModel] = Field(
        description="symbols whose requests are refused with 503 until a reload, at most limit of them"
    )
    total_unusable: int = Field(description="number of all such symbols")


# Objects of any keys; with these names, generated clients have one class for each.
Scores = TypeAliasType("Scores", Annotated[dict[str, float], Field(description="Numbers by name.")])
Versions = TypeAliasType("Versions", Annotated[dict[str, str], Field(description="Versions by library.")])
TrainedOn = TypeAliasType("TrainedOn", Annotated[dict[str, Any], Field(description="Origin of the prices.")])
ScoredModel = TypeAliasType(
    "ScoredModel", Annotated[dict[str, Any], Field(description="The model that the scores are those of.")]
)


class ModelAnswer(ModelLine):
    """A served model: its forecasts, its training data and its scores."""

    target: str
    likelihood: str = Field(
        description="mse: intervals from past errors; student_t: the model forecasts a distribution"
    )
    volatility: str = Field(description="volatility that the model corrects, as in training's options")
    members: int = Field(description="number of networks whose forecasts are averaged")
    widest_level: float = Field(
        description="highest level of the model's intervals of the next price, 0 for a model without intervals; beyond "
        f"one step, at most {WIDEST_SIMULATED_LEVEL:g}"
    )
    many_steps: bool = Field(description="whether the model forecasts more than one step")
    trained_on: TrainedOn | None = Field(
        description="source, bar length, calendar, first and last date, rows and hash of the prices; split says which "
        "part used which rows"
    )
    trained_until: str | None = Field(description="date or time of the last training row")
    model_age: int | None = Field(description="sessions after the last training row, until now")
    split: dict[str, Any] = Field(description="rows of the train, validation and test parts")
    scored_model: ScoredModel | None = Field(
        description="split, trained_until and validated_until of the model that the metrics and intervals are those "
        "of: one of the same configuration, scored on rows that it was not trained on; null if they are its own"
    )
    metric_units: dict[str, str] = Field(description="units of the metrics that are not in price units")
    metrics_validation: Scores | None
    metrics_test: Scores | None
    persistence: dict[str, Scores] = Field(description="persistence's metrics on the same rows, by part")
    intervals: dict[str, list[Scores]] = Field(
        description="coverage and mean width of the intervals of the model and of persistence, by part"
    )
    configurations_tried: int | None = Field(description="configurations trained before this one was chosen")
    trial_number: int | None
    config: dict[str, Any]
    versions: Versions | None = Field(description="library versions at training")
    created: str | None
    train_range: tuple[float, float] | None = Field(
        description="lowest and highest price in training; a window beyond them gets a warning"
    )
    latest_window: list[float] | list[list[float]] | None = Field(
        description="the last values_used values of the series that the model was trained on, in the form of values of "
        "POST /predict"
    )
    device: str
    engine: str = Field(description="engine that runs the network: torch or onnx")
    published: bool = Field(description="whether GET /forecast has a published forecast of the symbol")
    refused: RefusalAnswer | None = Field(
        description="the last checkpoint that this replica tried to load, if it was refused"
    )


class PublishedStep(BaseModel):
    """The published forecast of one bar."""

    target: str = Field(description="date or time of the bar, ISO 8601")
    horizon: int = Field(description="number of steps after the last known bar")
    prediction: float = Field(description="in price units")
    intervals: list[Interval] = Field(description="one for each level")


class SettledStep(PublishedStep):
    """The published forecast of a bar whose price has arrived, in the price units of its day."""

    realized: float = Field(description="the price")
    crps: float = Field(description="the forecast's CRPS, in price units")


class PublishedForecast(BaseModel):
    """The published forecast of a symbol."""

    symbol: str
    name: str = Field(description="the model's name in the model store")
    sha256: str = Field(description="hash of the model's file")
    origin: str = Field(description="date or time of the last known bar, ISO 8601")
    last_price: float = Field(description="the price of that bar")
    issued_at: str = Field(description="time of publication; UTC, ISO 8601")
    age_sessions: int | None = Field(
        description="number of bars after the origin that have ended, by the symbol's calendar; null if it is not known"
    )
    steps: list[PublishedStep] = Field(description="the forecasts, nearest bar first")
    settled: list[SettledStep] = Field(
        description="earlier published forecasts of one step, oldest first; at most as many as requested"
    )


class PublishedAnswer(BaseModel):
    """One page of the published forecasts."""

    forecasts: list[PublishedForecast]
    total: int = Field(description="number of forecasts on all pages")
    next_offset: int | None = Field(description=NEXT_OFFSET)


class LiveSkill(BaseModel):
    """The published forecasts against those of a baseline, on the sessions with both."""

    baseline: str
    horizon: int = Field(description="number of steps")
    sessions: int
    ratio: float | None = Field(
        description="sum of the CRPS over that of the baseline, below 1 is better; null if the baseline's is 0"
    )


class LiveCoverage(BaseModel):
    """The coverage of the published intervals of the next session."""

    level: float
    coverage: float = Field(
        description="mean over the sessions of the share of symbols whose price was inside its interval"
    )
    lower: float = Field(
        description="lower bound of the probability that a price is inside its interval; the bounds are valid at all "
        "sessions together, with a probability of 0.95"
    )
    upper: float = Field(description="upper bound of this probability")
    inside: int = Field(description="number of prices inside")
    prices: int = Field(description="number of prices")


class LiveEvent(BaseModel):
    """An event of the models of a name."""

    at: str = Field(description="UTC, ISO 8601")
    kind: str = Field(description="added, promoted, kept, waits, shadow, rolled_back or alarm")
    version: str | None
    session: str | None = Field(description="the last known session at that time")
    details: dict[str, Any] = Field(description="reasons and figures")


class LiveRecord(BaseModel):
    """The live record of a name: the scores of its published forecasts."""

    name: str = Field(description="name in the model store")
    symbols: int = Field(description="number of symbols with a published forecast")
    version: str | None = Field(description="the current version; null before the first promotion")
    since: str | None = Field(description="time of its promotion; UTC, ISO 8601")
    latest: PublishedForecast = Field(
        description="the last published forecast, of one of the symbols, without intervals"
    )
    sessions: int = Field(
        description="number of sessions in the record: since the promotion, or as requested; at most the last "
        f"{MOST_SESSIONS}"
    )
    first: str | None = Field(description="the first of these sessions")
    last: str | None = Field(description="the last of these sessions")
    skill: list[LiveSkill] = Field(description="for each number of steps and baseline")
    coverage: list[LiveCoverage] = Field(description="for each level")
    alarms: list[LiveEvent] = Field(
        description="the alarms that are on; details has alarm, and its text when it began"
    )
    history: list[LiveEvent] = Field(
        description=f"the events of the versions, latest first; at most {MOST_CHANGES}"
    )


class ScoresAnswer(BaseModel):
    """One page of the live records."""

    records: list[LiveRecord]
    total: int = Field(description="number of records on all pages")
    next_offset: int | None = Field(description=NEXT_OFFSET)


class HealthAnswer(BaseModel):
    """Readiness."""

    ok: bool = True


MAX_PROBLEMS = 10
"""Most problems reported per request."""


def problems_of(error: ValidationError, request: type[Options]) -> list[Problem]:
    """Return the first problems of a validation error, without the input, which may hold values that JSON cannot.

    Args:
        error: raised by validating a body.
        request: the schema of the route's bodies.
    """
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [
        Problem(
            loc=["body", *item["loc"]],
            msg=f"{item['msg'][0].lower()}{item['msg'][1:]}; {_remedy(item['loc'], request)}",
            type=item["type"],
        )
        for item in found[:MAX_PROBLEMS]
    ]


def _remedy(where: tuple[int | str, ...], request: type[Options]) -> str:
    """Return the remedy for the field at ``where``, or for the whole body."""
    field = request.model_fields.get(str(where[0])) if where else None
    found = [entry.text for entry in field.metadata if isinstance(entry, Remedy)] if field else []
    return found[0] if found else request.body_remedy
