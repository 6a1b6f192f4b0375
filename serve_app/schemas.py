"""What goes over HTTP: requests, answers, and errors that say what, where and the remedy."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_HORIZON = 365
"""Most steps ahead: each costs a forecast, and says less than the one before."""

MAX_LEVELS = 20
"""Most intervals of one request."""

Price = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Window = Annotated[list[Price], Field(min_length=1, fail_fast=True)]
Row = Annotated[list[Price], Field(min_length=1, fail_fast=True)]
RowWindow = Annotated[list[Row], Field(min_length=1, fail_fast=True)]
Level = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, lt=1)]


class Options(BaseModel):
    """What may stand beside the prices. Fields that are not known here are ignored, as they always were."""

    model_config = ConfigDict(hide_input_in_errors=True)

    symbol: Annotated[str, Field(strict=True, min_length=1, max_length=100)] | None = Field(
        None, description="which model to use; needed only where several are served, see GET /models"
    )
    horizon: Annotated[int, Field(strict=True, ge=1, le=MAX_HORIZON)] | None = Field(
        None,
        description="steps to forecast, each from the forecasts before it; the answer then has predictions",
    )
    levels: Annotated[list[Level], Field(min_length=1, max_length=MAX_LEVELS)] | None = Field(
        None,
        description="levels of central intervals, for example [0.5, 0.9]; the answer then has intervals",
    )


class PredictRequest(Options):
    """A window of past prices."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"values": [120.5, 121.0, 122.3, 121.8, 123.1], "horizon": 3, "levels": [0.5, 0.9]}]
        }
    )

    values: Window = Field(
        description="past prices, oldest first, at least the model's sequence_length; the last ones are used"
    )


class BatchRequest(Options):
    """Many windows of past prices at once."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"windows": [[120.5, 121.0, 122.3], [98.1, 97.9, 98.4]]}]}
    )

    windows: Annotated[list[Window], Field(min_length=1, fail_fast=True)] = Field(
        description="windows, each as values of POST /predict; they need not be equally long"
    )


class PredictRowsRequest(Options):
    """A window for a model of several columns."""

    values: RowWindow = Field(
        description="past days, oldest first, each a row of the model's columns in their order (GET /model has them)"
    )


class BatchRowsRequest(Options):
    """Many windows for a model of several columns."""

    windows: Annotated[list[RowWindow], Field(min_length=1, fail_fast=True)] = Field(
        description="windows, each as values of POST /predict"
    )


class Interval(BaseModel):
    """A central interval: the model gives the price a chance of ``level`` to be in it."""

    level: float
    lower: float | list[float] = Field(description="in price units; one a step when horizon was given")
    upper: float | list[float]


class ForecastAnswer(BaseModel):
    """What every answer with forecasts has in common."""

    ok: bool = Field(True, description="always true in an answer with status 200")
    checkpoint_path: str = Field(description="the checkpoint that is served")
    sequence_length: int = Field(description="past prices the model looks at")
    symbol: str
    feature: str
    warnings: list[str] | None = Field(
        None, description="what to know about the answer; only there when there is something"
    )


class PredictAnswer(ForecastAnswer):
    """The forecast and which model made it."""

    prediction: float = Field(description="forecast of the next price, in price units")
    predictions: list[float] | None = Field(
        None, description="forecasts of the next horizon prices; only there when horizon was given"
    )
    intervals: list[Interval] | None = Field(
        None,
        description="one for each of the levels; beyond one step ahead they are read from simulated futures",
    )


class BatchAnswer(ForecastAnswer):
    """The forecasts of many windows and which model made them."""

    predictions: list[float] | list[list[float]] = Field(
        description="forecast of each window's next price; of its next horizon prices when horizon was given"
    )
    intervals: list[list[Interval]] | None = Field(
        None, description="each window's, as those of POST /predict; only there when levels were given"
    )


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    loc: list[str | int] = Field(description="where: body, then the field, then the index")
    msg: str = Field(description="what is wrong and the remedy")
    type: str = Field(description="a stable word for the kind of problem")


class ErrorAnswer(BaseModel):
    """Why a request was refused."""

    ok: bool = Field(False, description="always false in an error")
    detail: list[Problem]


class RefusalAnswer(BaseModel):
    """A checkpoint that was not taken."""

    reason: str
    at: str = Field(description="UTC, ISO 8601")


class ModelLine(BaseModel):
    """One of the served models, in short."""

    symbol: str
    feature: str
    sequence_length: int = Field(description="past prices the model looks at")
    columns: list[str] = Field(
        description="what it sees of each day; values are rows of them if there are several"
    )
    sha256: str = Field(description="of the checkpoint's file")
    checkpoint_path: str


class ModelsAnswer(BaseModel):
    """Every served model."""

    models: list[ModelLine]


class ModelAnswer(ModelLine):
    """The served model: what it forecasts, from what it was trained, and how good it is."""

    target: str
    likelihood: str = Field(
        description="mse: intervals from past errors; student_t: a distribution of its own"
    )
    widest_level: float = Field(description="level up to which it has intervals; 0 where it has none")
    trained_on: dict[str, Any] | None = Field(
        description="source, first and last date, rows, hash of the prices, of which split says who used which"
    )
    split: dict[str, Any] = Field(description="rows of the train, validation and test parts")
    metrics_validation: dict[str, float] | None
    metrics_test: dict[str, float] | None
    persistence: dict[str, dict[str, float]] = Field(
        description="persistence's metrics on the same rows, by part"
    )
    intervals: dict[str, list[dict[str, float]]] = Field(
        description="coverage and mean width of its intervals and persistence's, by part"
    )
    configurations_tried: int | None = Field(description="configurations trained before this one was chosen")
    trial_number: int | None
    config: dict[str, Any]
    versions: dict[str, str] | None = Field(description="library versions at training")
    created: str | None
    train_range: tuple[float, float] | None = Field(
        description="least and largest price of the training; a window beyond them is answered with a warning"
    )
    latest_window: list[float] | list[list[float]] | None = Field(
        description="the last values of the series it was trained on, as values of POST /predict"
    )
    device: str
    engine: str = Field(description="what runs the network: torch or onnx")
    refused: RefusalAnswer | None = Field(
        description="the last checkpoint this replica was to load instead, if it was refused"
    )


class HealthAnswer(BaseModel):
    """Readiness."""

    ok: bool = True


MAX_PROBLEMS = 10
"""Most problems told of one request."""
REMEDIES = {
    "json_invalid": 'send JSON, for example {"values": [120.5, 121.0]}; NaN and Infinity are no JSON numbers',
    "missing": "see GET /docs for what this route takes",
    "list_type": "send a list",
    "string_type": "send a name in quotes",
    "int_type": "send a whole number, without quotes",
    "greater_than": "a level is between 0 and 1, for example 0.9",
    "less_than": "a level is between 0 and 1, for example 0.9",
    "too_long": f"send at most {MAX_LEVELS} levels",
    "greater_than_equal": f"a horizon is between 1 and {MAX_HORIZON}",
    "less_than_equal": f"a horizon is between 1 and {MAX_HORIZON}",
    "float_type": "send numbers, without quotes",
    "finite_number": "every value must be a finite number",
    "too_short": "send the model's sequence_length past prices, oldest first",
    "model_type": 'send an object, for example {"values": [120.5, 121.0]}',
}


def problems_of(error: ValidationError) -> list[Problem]:
    """The first things a validation error says, without the input: it can hold what JSON has no word for."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [
        Problem(
            loc=["body", *item["loc"]],
            msg=f"{item['msg'][0].lower()}{item['msg'][1:]}; {_remedy(item['loc'], item['type'])}",
            type=item["type"],
        )
        for item in found[:MAX_PROBLEMS]
    ]


def _remedy(where: tuple[int | str, ...], kind: str) -> str:
    if kind == "too_short" and where[0] == "levels":
        return "give a level, for example 0.9, or leave levels out"
    return REMEDIES.get(kind, "see GET /docs")
