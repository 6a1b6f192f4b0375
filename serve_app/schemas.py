"""What goes over HTTP: requests, answers, and errors that say what, where and the remedy."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Price = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class PredictRequest(BaseModel):
    """A window of past prices. Fields that are not known here are ignored, as they always were."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"values": [120.5, 121.0, 122.3, 121.8, 123.1]}]},
        hide_input_in_errors=True,
    )

    values: Annotated[list[Price], Field(min_length=1, fail_fast=True)] = Field(
        description="past prices, oldest first, at least the model's sequence_length; the last ones are used"
    )


class PredictAnswer(BaseModel):
    """The forecast and which model made it."""

    ok: bool = Field(True, description="always true in an answer with status 200")
    prediction: float = Field(description="forecast of the next price, in price units")
    checkpoint_path: str = Field(description="the checkpoint that is served")
    sequence_length: int = Field(description="past prices the model looks at")
    symbol: str
    feature: str


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    loc: list[str | int] = Field(description="where: body, then the field, then the index")
    msg: str = Field(description="what is wrong and the remedy")
    type: str = Field(description="a stable word for the kind of problem")


class ErrorAnswer(BaseModel):
    """Why a request was refused."""

    ok: bool = Field(False, description="always false in an error")
    detail: list[Problem]


class ModelAnswer(BaseModel):
    """The served model: what it forecasts, from what it was trained, and how good it is."""

    checkpoint_path: str
    symbol: str
    feature: str
    sequence_length: int
    target: str
    trained_on: dict[str, Any] | None = Field(
        description="source, first and last date, rows, hash of the prices"
    )
    split: dict[str, Any] = Field(description="rows of the train, validation and test parts")
    metrics_validation: dict[str, float] | None
    metrics_test: dict[str, float] | None
    persistence: dict[str, dict[str, float]] = Field(
        description="persistence's metrics on the same rows, by part"
    )
    trial_number: int | None
    config: dict[str, Any]
    versions: dict[str, str] | None = Field(description="library versions at training")
    created: str | None
    device: str


class HealthAnswer(BaseModel):
    """Readiness."""

    ok: bool = True


REMEDIES = {
    "json_invalid": 'send JSON, for example {"values": [120.5, 121.0]}; NaN and Infinity are no JSON numbers',
    "missing": 'send {"values": [...]}',
    "list_type": "send a list of numbers",
    "float_type": "send numbers, without quotes",
    "finite_number": "every value must be a finite number",
    "too_short": "send the model's sequence_length past prices, oldest first",
    "model_type": 'send an object, {"values": [...]}',
}


def problems_of(error: ValidationError) -> list[Problem]:
    """What a validation error says, without the input: it can hold what JSON has no word for."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [
        Problem(
            loc=["body", *item["loc"]],
            msg=f"{item['msg'][0].lower()}{item['msg'][1:]}; {REMEDIES.get(item['type'], 'see GET /docs')}",
            type=item["type"],
        )
        for item in found
    ]
