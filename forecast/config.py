"""Options of data, split, normalization and training, each defined once.

A field is the only definition of its option: type, default, unit, meaning and limits. Commands, tuning trials and
checkpoints carry these objects; the command line (``forecast.cli.command``) derives its options and its ``--help``
from them.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import types
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from forecast.errors import AgeError, UsageError
from forecast.names import did_you_mean, plain_name, split_names

Settings = TypeVar("Settings", bound=BaseModel)
Target = Literal["residual", "level"]
Likelihood = Literal["mse", "student_t"]
VolatilityName = Literal["ewma", "gjr", "range", "window"]
SEEDS = 2**32
"""Number of seeds that there are."""
NAMED_SOURCES = ("auto", "yahoo", "snapshot")
SQLITE_FILE = re.compile(r"^(?P<scheme>sqlite(?:\+\w+)?:///)(?P<path>[^/:?$][^?$]*)(?P<options>\?.*)?$")
"""The address of a database in a file, by a relative path."""
IntervalName = Literal["auto", "1m", "5m", "15m", "30m", "1h", "1d", "1wk", "1mo"]


def _delimiter(value: Any) -> Any:
    return "\t" if value in ("tab", "\\t") else value


class Config(BaseModel):
    """Frozen, validated settings; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileConfig(Config):
    """How files are read; without these options, in the form that a file's own cells prove."""

    date_column: str | None = Field(None, min_length=1, description="column of dates in a file")
    date_format: str | None = Field(
        None,
        min_length=1,
        description="form of the dates in a file: strptime's directives such as %d/%m/%Y; excel for Excel's numbers; "
        "s, ms, us or ns for times since 1970",
    )
    delimiter: Annotated[str | None, BeforeValidator(_delimiter)] = Field(
        None, pattern=r"^[ -~\t]$", description="sign between the fields of a text file; tab for a tab"
    )
    decimal: Literal[".", ","] | None = Field(
        None, description="decimal sign of the numbers in a file: . or ,"
    )
    symbol_column: str | None = Field(
        None, min_length=1, description="column of a file with several symbols that names each row's symbol"
    )
    encoding: str | None = Field(
        None, min_length=1, description="encoding of a text file, for example utf-8, utf-16 or cp1252"
    )


class DataConfig(FileConfig):
    """The series, its split and its normalization."""

    symbol: str = Field(
        "BTC-USD", min_length=1, description="symbol of the series, as Yahoo Finance spells it"
    )
    feature: str = Field("Close", min_length=1, description="column of prices to forecast")
    input_columns: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        (),
        description="covariates: other columns of the source that the model sees, for example Volume; each is cleaned "
        "like the feature; Open, High and Low beside Close are seen as distances from it",
    )
    source: str = Field(
        "auto",
        min_length=1,
        description="where prices come from: auto (Yahoo, else the local cache, else the bundled snapshot), "
        "yahoo, snapshot, a file (CSV, Parquet, Excel), a directory of files, an https://, s3:// or gs:// address, or "
        "a database",
    )
    interval: IntervalName | None = Field(
        None,
        description="length of a bar; auto: the source's own (default: days; of a file with longer bars, those)",
    )
    calendar: str | None = Field(
        None,
        min_length=1,
        description="calendar of the sessions: an exchange such as XNYS, 24/7 or 24/5 (default: the one that the "
        "symbol names or the rows fit)",
    )
    start: dt.date | None = Field(None, description="first day to use, ISO date (default: all history)")
    end: dt.date | None = Field(None, description="day to stop before (exclusive), ISO date")
    train_ratio: float = Field(
        0.85, gt=0, lt=1, description="share of rows for training and validation; the rest are test rows"
    )
    val_ratio_within_train: float = Field(
        0.15, gt=0, lt=1, description="share of the rows before the test rows to use for validation"
    )
    log_prices: bool = Field(
        True, description="normalize the logarithm of prices (needs positive prices) instead of the prices"
    )
    keep_non_positive: bool = Field(
        False,
        description="keep zero and negative prices (for series that really have them) instead of dropping "
        "them as errors; needs `log_prices=False`",
    )

    @field_validator("source")
    @classmethod
    def _as_resolved(cls, source: str) -> str:
        """Keep a relative path as it is resolved here: a checkpoint is used in other places than it is made in."""
        if found := SQLITE_FILE.match(source):
            return f"{found['scheme']}{Path(found['path']).absolute()}{found['options'] or ''}"
        path = home_expanded(source)
        named = source in NAMED_SOURCES or source in {
            entry.name for entry in entry_points(group="forecast.sources")
        }
        return source if named or "://" in source or not path.exists() else str(path.absolute())

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.start and self.end and self.start >= self.end:
            raise ValueError(
                f"`start` {self.start} is not before `end` {self.end}; swap them or widen the range"
            )
        if self.keep_non_positive and self.log_prices:
            raise ValueError(
                "`keep_non_positive` cannot be used with log prices, which need positive prices; add `log_prices=False`"
            )
        seen = {plain_name(self.feature)}
        for name in self.input_columns:
            if plain_name(name) in seen:
                raise ValueError(f"`input_columns`: {name} is already an input; name each column once")
            seen.add(plain_name(name))
        return self


class ExperimentConfig(DataConfig):
    """Settings that all models of one comparison share: data, network, target, likelihood and seed."""

    network: str = Field(
        "lstm", min_length=1, description="kind of network: lstm, or a network that an installed package adds"
    )
    target: Target = Field(
        "residual",
        description="residual: predict the change from the window's last value, starting as persistence; "
        "level: predict the normalized price itself",
    )
    likelihood: Likelihood = Field(
        "student_t",
        description="student_t: learn the distribution of the next value; mse: learn a point forecast with the squared "
        "error, and take intervals from the errors on validation rows",
    )
    market: bool = Field(
        False,
        description="see what the whole market did in each session: the mean of the changes of all `symbols`, the "
        "running volatility of this mean, and the dispersion of the changes; a search then tries models with and "
        "without it",
    )
    start_from: Path | None = Field(
        None,
        description="checkpoint of a model, such as one of many symbols, whose weights training starts from; the new "
        "model has the same network",
    )
    seed: int = Field(42, ge=0, lt=SEEDS, description="seed of weights, batches and search")
    windows_per_epoch: int = Field(
        100_000,
        ge=1,
        description="most training windows per epoch; if there are more, each epoch draws this many at random",
    )
    members: int = Field(
        2,
        ge=1,
        le=100,
        description="models trained with seeds from `seed` on, whose quantiles are averaged",
    )

    @field_validator("start_from")
    @classmethod
    def _anywhere(cls, path: Path | None) -> Path | None:
        """Keep a relative path as it is resolved here, as that of a source."""
        return path and home_expanded(path).absolute()


class TrainConfig(ExperimentConfig):
    """Settings that determine one trained model."""

    sequence_length: int = Field(
        60, ge=2, le=5000, description="window length: number of past rows that a forecast sees"
    )
    volatility: VolatilityName = Field(
        "ewma",
        description="volatility that the model corrects, fitted on the training rows: ewma, exponentially weighted "
        "changes; gjr, in which falls count more (GJR-GARCH); range, the same with the bar's range, for which "
        "`input_columns` has High and Low; window, ewma of the window's changes alone, as in version 0.1",
    )
    hidden_size: int = Field(64, ge=1, le=4096, description="width of each recurrent layer")
    num_layers: int = Field(1, ge=1, le=16, description="number of recurrent layers")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout between layers (no effect with one layer)")
    learning_rate: float = Field(2e-3, gt=0, le=1, description="Adam's learning rate")
    batch_size: int = Field(64, ge=1, description="windows per gradient step")
    max_epochs: int = Field(60, ge=1, le=1_000_000, description="maximum number of epochs")
    patience: int = Field(10, ge=1, description="epochs without a better validation loss before stopping")
    grad_clip_norm: float = Field(1.0, gt=0, description="norm to which larger gradients are clipped")
    threads: int = Field(
        1,
        ge=1,
        le=1024,
        description="CPU threads; another number changes the last digits of the weights",
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto (CUDA if available), cpu or cuda"
    )


class PanelOptions(Config):
    """Symbols that one model is trained on together."""

    symbols: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        (),
        description="symbols that one model is trained on together: names; all, for those of a file, a directory or a "
        "database; or @names.txt, for those that a file lists (default: `symbol` alone)",
    )
    holdout_symbols: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of `symbols`, drawn at random, to keep out of training; the model is scored on these "
        "held-out symbols as a served model answers for symbols that it has never seen",
    )

    @model_validator(mode="after")
    def _symbols_to_hold_out(self) -> PanelOptions:
        if self.holdout_symbols and not self.symbols:
            raise ValueError(
                f"`holdout_symbols` {self.holdout_symbols:g} needs `symbols`; add it, or omit this option"
            )
        return self


class AgeOptions(Config):
    """How old a model may be."""

    max_age_sessions: int | None = Field(
        None,
        ge=0,
        description="most sessions between the last training row and the forecast's last known one (unless given, any "
        "number)",
    )
    when_too_old: Literal["warn", "refuse"] = Field(
        "warn", description="what to do with a forecast of an older model: warn, or refuse it"
    )

    def complaint(self, age: int | None) -> str | None:
        """Why a model of this age is too old, in one line; None when it is not, or its age is not known.

        Raises:
            AgeError: when it is too old, and such models are refused.
        """
        if self.max_age_sessions is None or age is None or age <= self.max_age_sessions:
            return None
        complaint = (
            f"the model's last training row is {age} sessions old, more than {self.max_age_sessions}; train on later "
            "rows (those held out for validation and test are no training rows), or raise `max_age_sessions`"
        )
        if self.when_too_old == "refuse":
            raise AgeError(complaint)
        return complaint


def options_of(settings: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of ``settings`` by the names that users write: ``json`` for ``json_output``."""
    return {field.alias or name: field for name, field in settings.model_fields.items()}


def kind_of(field: FieldInfo) -> Any:
    """The type of a field's values, without None."""
    if get_origin(field.annotation) in (Union, types.UnionType):
        return next(kind for kind in get_args(field.annotation) if kind is not type(None))
    return field.annotation


def from_text(field: FieldInfo, text: str) -> Any:
    """The value of an option that is given as one text: commas separate the names or numbers of a list.

    The ``~`` of a path is replaced here, because no shell has done so.
    """
    kind = kind_of(field)
    if kind is Path:
        return home_expanded(text)
    return split_names(text) if get_origin(kind) in (list, tuple) else text


def home_expanded(path: str | Path) -> Path:
    """The path with a leading ``~`` replaced by the home directory; ``~name`` stays if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def variable_of(option: str) -> str:
    """The environment variable of an option, by the one rule that there is: ``FORECAST_`` and its name."""
    return f"FORECAST_{option.upper()}"


def from_environment(settings: type[BaseModel]) -> dict[str, Any]:
    """The options of ``settings`` that environment variables give (``variable_of``); an empty variable gives none."""
    given = {name: os.environ.get(variable_of(name)) for name in options_of(settings)}
    return {name: from_text(options_of(settings)[name], text) for name, text in given.items() if text}


def parse_settings(settings: type[Settings], given: Mapping[str, Any]) -> Settings:
    """Validate ``given`` (field name to value, as text or as an object) as ``settings``.

    Raises:
        UsageError: for the first invalid field; names the parameter, the value and the remedy.
    """
    try:
        return settings.model_validate(given)
    except ValidationError as error:
        raise UsageError(_first_problem(error, options_of(settings))) from None


REMEDIES = {
    "int": "give a whole number",
    "float": "give a number",
    "finite": "give a finite number",
    "bool": "give true or false",
    "date": "give a date such as 2024-01-31",
    "string": "give a single text",
    "path": "give a single path",
    "tuple": "give a list",
    "list": "give a list",
}
"""What to give instead of a value of the wrong type, by the first word of pydantic's name for the error."""
LIMITS = {
    "greater_than": "give a number greater than {gt}",
    "greater_than_equal": "give at least {ge}",
    "less_than": "give a number less than {lt}",
    "less_than_equal": "give at most {le}",
    "too_short": "give at least {min_length}",
    "string_too_short": "give a text that is not empty",
}
"""What to give instead of a value beyond a limit, by pydantic's name for the error."""


def _first_problem(error: ValidationError, options: Mapping[str, FieldInfo]) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    name = str(first["loc"][0])
    parameter = f"`{name}`"
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(name, options, most=1)
        return f"{parameter}: no such option" + (f"; {hint}" if hint else "")
    if len(first["loc"]) > 1:
        parameter += f" (number {int(first['loc'][1]) + 1})"
    if first["type"] == "missing":
        return f"{parameter}: give a value"
    value = first["input"]
    shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"{parameter}{shown and ' '}{shown}: {_remedy(dict(first), options[name])}"


def _remedy(problem: dict[str, Any], field: FieldInfo) -> str:
    kind = problem["type"]
    context = {
        name: f"{value:g}" if isinstance(value, float) else value
        for name, value in problem.get("ctx", {}).items()
    }
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        hint = did_you_mean(str(problem["input"]), choices, most=1)
        return f"choose from {', '.join(choices)}" + (f"; {hint}" if hint else "")
    if kind == "string_pattern_mismatch":
        return f"expected: {field.description}"
    if kind in LIMITS:
        return LIMITS[kind].format_map(context)
    message = problem["msg"].removeprefix("Value error, ")
    return REMEDIES.get(kind.partition("_")[0], f"{message[0].lower()}{message[1:]}")
