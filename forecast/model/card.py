"""Model cards: everything that a checkpoint says about its model, beside the weights.

This file does not import torch: a server of exported models never needs it.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from forecast.config import TrainConfig
from forecast.errors import CheckpointError, UsageError
from forecast.model.architecture import lstm_size
from forecast.model.market import Market
from forecast.model.normalization import Normalization
from forecast.model.volatility import CONSTANT, Recursion
from forecast.model.windows import Encoding, PreparedSeries, window_recursion
from forecast.names import listed
from forecast.prices.series import Provenance

SCHEMA_VERSION = 5
HOW_TO_MAKE_ONE = "make one with `python -m tune_jobs.pareto` or `python -m forecast train`"

ORIGINAL_DEFAULTS = {"learning_rate": 1e-3, "patience": 15}
"""Options that files of the original system may leave out, with the values that version 0.1 showed for them."""
ADDED_LATER = frozenset(
    {
        "calibration_scores",
        "intervals",
        "configurations_tried",
        "searched_rows",
        "train_range",
        "latest_window",
        "trained_until",
        "validated_until",
        "recursions",
        "dynamics",
        "horizon_stretches",
        "further_members",
        "search_p_value",
        "scored_model",
        "symbols",
        "left_out",
        "market",
        "metrics_test_without_market",
        "held_out",
        "started_from",
    }
)
"""Fields that files of earlier schemas may lack."""

Scores = Annotated[
    NDArray[np.float64],
    BeforeValidator(lambda found: found if found is None else np.asarray(found, np.float64)),
]
"""Numbers (n,), which a checkpoint's file stores as a tensor, and an exported model as a list."""

Options = Annotated[TrainConfig, PlainSerializer(lambda config: config.model_dump(mode="json"))]


class MemberCard(BaseModel):
    """One of the networks whose quantiles a model averages, without its weights."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    config: Options = Field(description="every option it was trained with")
    recursions: tuple[Recursion, ...] = Field(description="recursions of its volatility")
    best_epoch: int | float | None = Field(
        default=None, description="epochs after which `model_state` was best"
    )


class SymbolPart(BaseModel):
    """What a model of many symbols holds of one of them; the fields are those of ``ModelCard``."""

    model_config = ConfigDict(frozen=True)

    normalization: Normalization
    provenance: dict[str, Any]
    split: dict[str, Any]
    train_range: tuple[float, float]
    trained_until: str | None
    validated_until: str | None
    latest_window: list[Any] | None = None
    metrics_validation: dict[str, float] | None = None
    metrics_test: dict[str, float] | None = None
    persistence: dict[str, dict[str, float]] = {}
    intervals: dict[str, list[dict[str, float]]] = {}
    scored_model: dict[str, Any] | None = None

    @classmethod
    def of(cls, prepared: PreparedSeries, provenance: Provenance) -> SymbolPart:
        """The part of a newly trained model, not scored."""
        return cls(
            normalization=prepared.normalization,
            provenance=dataclasses.asdict(provenance),
            split=dataclasses.asdict(prepared.split),
            train_range=prepared.train_range,
            trained_until=prepared.trained_until,
            validated_until=prepared.validated_until,
        )


class ModelCard(BaseModel):
    """A trained model without its weights."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    config: Options = Field(description="every option it was trained with")
    normalization: Normalization = Field(
        description="the scaling of each column, fitted on its training rows, the feature's first"
    )
    val_loss_best: Annotated[float, BeforeValidator(lambda loss: math.nan if loss is None else loss)] = Field(
        description="lowest validation loss, in units of the model's output"
    )
    calibration_scores: Scores | None = Field(
        default=None,
        description="`forecast.model.likelihood.calibration_scores` on the validation rows, ascending; none in files "
        "older than intervals",
    )
    metrics_test: dict[str, float] | None = Field(
        default=None, description="metrics by name on the test rows; none until it is scored on them"
    )
    metrics_validation: dict[str, float] | None = Field(
        default=None,
        description="metrics by name on the validation rows; none in files of the original system",
    )
    persistence: dict[str, dict[str, float]] = Field(
        default={}, description="persistence's metrics by part (`validation`, `test`) and name"
    )
    intervals: dict[str, list[dict[str, float]]] = Field(
        default={},
        description="coverage and width of the intervals of each level by part, with the fields of "
        "`forecast.scores.metrics.Coverage`",
    )
    trial_number: int | None = Field(
        default=None, description="number of its trial in the study; none when trained without a study"
    )
    trial_params: dict[str, Any] = Field(
        default={}, description="hyperparameters that the search chose; empty when trained without a study"
    )
    split: dict[str, Any] = Field(
        default={},
        description="row counts of train, validation and test; empty in files of the original system",
    )
    provenance: dict[str, Any] | None = Field(
        default=None, description="where the prices came from; none in files of the original system"
    )
    recursions: tuple[Recursion, ...] | None = Field(
        default=None,
        description="recursions of the volatility, fitted on the training rows; the network corrects the first; none "
        "in files of version 0.1, whose volatility is that of the window",
    )
    dynamics: Recursion = Field(
        default=CONSTANT,
        description="recursion that carries the variance of errors from one step to the next, fitted on those of the "
        "training rows, or for a trial on the changes; a constant variance in files of version 0.1",
    )
    horizon_stretches: dict[int, float] = Field(
        default={},
        description="factor on the width of intervals by number of steps, from the validation rows; empty for trials",
    )
    further_members: tuple[MemberCard, ...] = Field(
        default=(), description="networks beyond that of `model_state`; the quantiles of all are averaged"
    )
    trained_until: str | None = Field(
        default=None,
        description="date or time of the last training row, ISO 8601; none in files older than this field",
    )
    validated_until: str | None = Field(
        default=None,
        description="date or time of the last validation row, ISO 8601; none in files older than this field",
    )
    scored_model: dict[str, Any] | None = Field(
        default=None,
        description="`split`, `trained_until` and `validated_until` of the model of the same configuration that the "
        "metrics and intervals are those of; none when they are this model's own",
    )
    versions: dict[str, str] | None = Field(
        default=None, description="library versions at training, and the kind of device it ran on"
    )
    created: str | None = Field(default=None, description="UTC time of training, ISO 8601")
    best_epoch: int | float | None = Field(
        default=None, description="epochs after which `model_state` was best"
    )
    configurations_tried: int | None = Field(
        default=None,
        description="number of configurations trained before this one was chosen; none if unknown",
    )
    search_p_value: float | None = Field(
        default=None,
        description="p-value of Hansen's test that the search's best trial beats persistence on the rows it was chosen "
        "on; none when trained without a study",
    )
    searched_rows: int | None = Field(
        default=None,
        description="number of rows seen by the search that chose the configuration; none when trained without a study",
    )
    train_range: tuple[float, float] | None = Field(
        default=None, description="least and largest training price; none in files of the original system"
    )
    latest_window: list[Any] | None = Field(
        default=None,
        description="last values of the series it was scored on, in price units, as `POST /predict` takes them, as "
        "many as a forecast uses; none until it is scored on the test rows",
    )
    symbols: dict[str, SymbolPart] = Field(
        default={},
        description="of a model of many symbols, what belongs to each; the other fields are then those of the first "
        "symbol, or means over all",
    )
    left_out: dict[str, str] = Field(
        default={}, description="symbols that a model of many could not use, with the reason"
    )
    market: Market | None = Field(
        default=None, description="units of the market's columns; none for models that do not see it"
    )
    metrics_test_without_market: dict[str, float] | None = Field(
        default=None,
        description="`metrics_test` without the market; none for models that do not see it",
    )
    held_out: tuple[str, ...] = Field(
        default=(), description="held-out symbols: the model was not trained on them, only scored on them"
    )
    started_from: str | None = Field(
        default=None,
        description="hash of the checkpoint that training started from; none for an untrained start",
    )
    schema_version: int = Field(default=SCHEMA_VERSION, description="version of this format")
    sha256: str | None = Field(
        default=None,
        exclude=True,
        description="hash of the file it was loaded from, in hexadecimal; not stored in the file",
    )

    def of_symbol(self, symbol: str) -> Self:
        """The model as that of one of its symbols.

        Raises:
            UsageError: when it has no such symbol.
        """
        if not self.symbols and symbol == self.config.symbol:
            return self
        part = self.symbols.get(symbol)
        if part is None:
            raise UsageError(
                f"this model has no symbol {symbol!r}; choose one of these with `symbol`: "
                f"{listed(self.symbols or [self.config.symbol])}"
            )
        own = {name: getattr(part, name) for name in SymbolPart.model_fields}
        return self._as_one(own, symbol)

    def of_window(self, normalization: Normalization, symbol: str) -> Self:
        """The model as that of a symbol that it has never seen, normalized by a window's own statistics."""
        own = {name: type(self).model_fields[name].default for name in SymbolPart.model_fields}
        return self._as_one({**own, "normalization": normalization}, symbol)

    def _as_one(self, own: dict[str, Any], symbol: str) -> Self:
        """The model with one symbol's own fields, and without those of many."""
        of_many = ("symbols", "left_out", "held_out", "metrics_test_without_market")
        many = {name: type(self).model_fields[name].default for name in of_many}
        config = self.config.model_copy(update={"symbol": symbol})
        return self.model_copy(update={**many, **own, "config": config})

    @property
    def members(self) -> tuple[MemberCard, ...]:
        """The networks whose quantiles are averaged, that of ``config`` first."""
        first = MemberCard(config=self.config, recursions=self.first_recursions, best_epoch=self.best_epoch)
        return (first, *self.further_members)

    @property
    def first_recursions(self) -> tuple[Recursion, ...]:
        """The recursions of the first member's volatility."""
        return self.recursions or (window_recursion(self.config),)

    @property
    def columns_not_forecast(self) -> list[str]:
        """Input columns that a forecast of many steps would need forecasts of; parts of the bar need none."""
        scalings = self.normalization.scalings[1:]
        named = zip(self.config.input_columns, scalings, strict=True)
        return [name for name, scaling in named if scaling.part is None]

    @property
    def encodings(self) -> tuple[Encoding, ...]:
        """The conversion of prices to each member's inputs and of its outputs to prices."""
        return tuple(
            Encoding(self.normalization, member.config, member.recursions) for member in self.members
        )

    @property
    def sequence_length(self) -> int:
        """Number of past values that a forecast needs: the length of the longest of its members' windows."""
        return max(member.config.sequence_length for member in self.members)

    @property
    def rows_used(self) -> int:
        """Number of rows, the latest, that a forecast uses where they are known; it needs ``sequence_length``."""
        return max(encoding.rows for encoding in self.encodings)


Card = TypeVar("Card", bound=ModelCard)


def from_content(content: dict[str, Any], kind: type[Card], sha256: str | None = None) -> Card:
    """The checkpoint, or its card, in a file's content of any schema version up to the newest.

    Its weights are not checked.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: when the content is not that of a checkpoint.
    """
    version = content.get("schema_version", 0)
    return kind.model_validate({**_upgraded(content, version, kind.model_fields), "sha256": sha256})


def require_readable(version: object, path: str | os.PathLike[str]) -> None:
    """Check that this version can read a file of a schema version.

    Raises:
        CheckpointError: when it cannot.
    """
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: schema version {version} is newer than {SCHEMA_VERSION}, the newest that this version can read; "
            "upgrade this package"
        )


def require_usable(card: ModelCard) -> None:
    """Check the numbers of a card that forecasts depend on.

    Raises:
        ValueError: when a forecast is impossible with them.
    """
    columns = card.config.input_columns
    for normalization in (card.normalization, *(part.normalization for part in card.symbols.values())):
        if len(normalization.scalings) != 1 + len(columns):
            raise ValueError(
                f"it has {len(normalization.scalings)} scalings for its feature and the columns {columns}"
            )
        for scaling in normalization.scalings:
            if not (np.isfinite(scaling.mean) and scaling.std > 0 and scaling.change_std > 0):
                raise ValueError(f"its normalization is impossible: mean {scaling.mean}, std {scaling.std}")
    scores = card.calibration_scores
    if scores is not None and not (scores.ndim == 1 and len(scores) and np.isfinite(scores).all()):
        raise ValueError("its calibration scores are not finite numbers")


def _upgraded(content: dict[str, Any], version: int, fields: Iterable[str]) -> dict[str, Any]:
    """Convert a file's content from any schema version to the newest; ``schema_version`` stays the file's."""
    if version == 0:
        content = _from_original(content)
    if version < 3:
        content = dict(content)
        scalings = [content["normalization"], *content.pop("further", ())]
        content["normalization"] = {"scalings": scalings}
        content["calibration_scores"] = content.pop("errors", None)
        # Models of schema 1 are those of mean squared error: it had no word for a likelihood.
        content["config"] = {"likelihood": "mse", **content["config"]}
    if version < 4:
        # Earlier models corrected the volatility of the window alone, and had one member.
        content = {**content, "config": {"volatility": "window", "members": 1, **content["config"]}}
    if version > 0:
        optional = {"sha256"} if version == SCHEMA_VERSION else {"sha256", *ADDED_LATER}
        for name in set(fields) - content.keys() - optional:
            raise KeyError(name)
    return content


def _from_original(content: dict[str, Any]) -> dict[str, Any]:
    """Convert a file of the original system to schema 1: normalized price levels in and out, no logarithm.

    Options that are unknown here (paths, for example) are left out. The network's size is read from the weights, which
    cannot be wrong about it.
    """
    params = dict(content.get("trial_params") or {})
    metrics, number = content.get("metrics_test"), content.get("trial_number")
    found = {**ORIGINAL_DEFAULTS, **dict(content["config"]), **params}
    if "sequence_length" not in found:
        raise KeyError("sequence_length in its config")
    known = {name: found[name] for name in TrainConfig.model_fields if name in found}
    hidden_size, num_layers = lstm_size(content["model_state"])
    known |= {
        "network": "lstm",
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "target": "level",
        "likelihood": "mse",
        "log_prices": False,
        "device": "auto",
        "source": "auto",
    }
    mean, std = float(content["feature_mean"]), float(content["feature_std"])
    return {
        "model_state": content["model_state"],
        "config": known,
        "normalization": {"mean": mean, "std": std, "change_std": 1.0, "log": False},
        "val_loss_best": float(content.get("val_loss_best", float("nan"))),
        "metrics_test": metrics and {name: value for name, value in metrics.items() if _is_finite(value)},
        "trial_number": number if isinstance(number, int) else None,
        "trial_params": params,
        "schema_version": 0,
    }


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def first_line(error: Exception) -> str:
    """What is wrong with a file's content, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{' '.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"no {error.args[0]}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
