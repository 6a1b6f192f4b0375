"""Checkpoints: one trained model in one file that is safe to load and records its origin.

The file is a dictionary that ``torch.load(weights_only=True)`` reads: plain values and tensors, no code. Its keys are
the fields of ``Checkpoint``, and ``feature_mean`` and ``feature_std`` as in the original system, whose files load too.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import io
import os
import pickle
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from torch import Tensor, nn

from forecast.atomic import write_atomically
from forecast.config import TrainConfig
from forecast.errors import CheckpointError, UsageError
from forecast.model.lstm import lstm_size
from forecast.model.market import Market
from forecast.model.network import build_network
from forecast.model.normalization import Normalization
from forecast.model.panel import Prepared
from forecast.model.split import Part
from forecast.model.volatility import CONSTANT, Recursion
from forecast.model.windows import Encoding, PreparedSeries, window_recursion
from forecast.names import listed
from forecast.prices.series import Provenance
from forecast.scores.metrics import Evaluation

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
    BeforeValidator(lambda value: value.numpy() if isinstance(value, Tensor) else value),
    PlainSerializer(torch.from_numpy),
]
"""Numbers (n,) that a file stores as a tensor."""

Options = Annotated[TrainConfig, PlainSerializer(lambda config: config.model_dump(mode="json"))]


class Member(BaseModel):
    """One of the networks whose quantiles a model averages."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    model_state: dict[str, Tensor] = Field(description="weights by name, on the CPU")
    config: Options = Field(description="every option it was trained with")
    recursions: tuple[Recursion, ...] = Field(description="recursions of its volatility")
    best_epoch: int | float | None = Field(
        default=None, description="epochs after which `model_state` was best"
    )

    def trained_network(self) -> nn.Module:
        """The network with these weights, on the CPU, in eval mode.

        Raises:
            RuntimeError: when the weights do not fit the configuration.
            UsageError: when the network's kind is not known here.
        """
        network = build_network(self.config)
        network.load_state_dict(self.model_state)
        return network.eval()


class SymbolPart(BaseModel):
    """What a model of many symbols holds of one of them; the fields are those of ``Checkpoint``."""

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


Scored = TypeVar("Scored", SymbolPart, "Checkpoint")


def _scored(model: Scored, part: Part, evaluation: Evaluation, **changes: Any) -> Scored:
    """The same model, or the same part of one, with the scores on one part of the rows."""
    return model.model_copy(
        update={
            f"metrics_{part}": evaluation.model,
            "persistence": {**model.persistence, part: evaluation.persistence},
            "intervals": {
                **model.intervals,
                part: [dataclasses.asdict(each) for each in evaluation.intervals],
            },
            **changes,
        }
    )


class Checkpoint(BaseModel):
    """A trained model with everything needed to use and judge it."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    model_state: dict[str, Tensor] = Field(
        description="weights by name, on the CPU; `lstm.*` and `regressor.*` for an LSTM"
    )
    config: Options = Field(description="every option it was trained with")
    normalization: Normalization = Field(
        description="the scaling of each column, fitted on its training rows, the feature's first"
    )
    val_loss_best: float = Field(description="lowest validation loss, in units of the model's output")
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
    further_members: tuple[Member, ...] = Field(
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

    @classmethod
    def create(
        cls,
        *,
        model_state: dict[str, Tensor],
        config: TrainConfig,
        prepared: Prepared,
        val_loss_best: float,
        best_epoch: float | None,
        device: str,
        provenance: dict[str, Any],
        further_members: tuple[Member, ...] = (),
        trial_number: int | None = None,
        trial_params: dict[str, Any] | None = None,
        searched_rows: int | None = None,
        started_from: str | None = None,
    ) -> Checkpoint:
        """Create the checkpoint of a newly trained model, neither calibrated nor scored."""
        first = prepared.parts[0]
        return cls(
            model_state=model_state,
            config=config,
            normalization=first.normalization,
            recursions=first.encoding(config).recursions,
            dynamics=first.recursion,
            val_loss_best=val_loss_best,
            further_members=further_members,
            trial_number=trial_number,
            trial_params=trial_params or {},
            searched_rows=searched_rows,
            started_from=started_from,
            split=dataclasses.asdict(first.split),
            provenance=provenance,
            versions={**library_versions(), "device": device},
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            best_epoch=best_epoch,
            train_range=first.train_range,
            trained_until=first.trained_until,
            validated_until=first.validated_until,
            **_of_panel(prepared, config),
        )

    def calibrated(
        self,
        scores: NDArray[np.float64],
        validation: Evaluation,
        of_symbols: Mapping[str, Evaluation] | None = None,
    ) -> Checkpoint:
        """The same checkpoint with calibration scores, and the model's and persistence's scores on validation rows.

        Args:
            scores: the model's ``calibration_scores``.
            validation: its scores.
            of_symbols: the scores of each symbol of a panel, where they are known.
        """
        symbols = {
            symbol: _scored(part, "validation", of_symbols[symbol]) if of_symbols else part
            for symbol, part in self.symbols.items()
        }
        return _scored(self, "validation", validation, calibration_scores=scores, symbols=symbols)

    def with_test(
        self,
        test: Evaluation,
        prepared: Prepared,
        of_symbols: Mapping[str, Evaluation],
        configurations_tried: int | None = None,
        search_p_value: float | None = None,
    ) -> Checkpoint:
        """The same checkpoint with the model's and persistence's scores on the test rows of ``prepared``.

        Args:
            test: the scores.
            prepared: the series, or the panel.
            of_symbols: the scores of each symbol of a panel.
            configurations_tried: number of configurations trained before this one was chosen.
            search_p_value: how lucky the search may be.
        """
        symbols = {
            symbol: _scored(
                part, "test", of_symbols[symbol], latest_window=self._latest_window(prepared, symbol)
            )
            for symbol, part in self.symbols.items()
        }
        return _scored(
            self,
            "test",
            test,
            configurations_tried=configurations_tried,
            search_p_value=search_p_value,
            latest_window=self._latest_window(prepared),
            symbols=symbols,
        )

    def _latest_window(self, prepared: Prepared, symbol: str | None = None) -> list[Any]:
        """The latest window of a symbol of a panel; without one, of the series or of the panel's first."""
        found = prepared.parts[0]
        if symbol is not None and not isinstance(prepared, PreparedSeries):
            found = prepared.series[symbol]
        return found.latest_window(self.rows_used)

    def with_scores_of(self, scored: Checkpoint, prepared: Prepared) -> Checkpoint:
        """The same model, trained for service on the rows of ``prepared``, with the scores of one on the honest split.

        Args:
            scored: the model of the same configuration that is scored.
            prepared: the series that this model was trained on.
        """
        scores = ("metrics_validation", "metrics_test", "persistence", "intervals")
        kept = (
            *scores,
            "metrics_test_without_market",
            "held_out",
            "trial_number",
            "trial_params",
            "configurations_tried",
            "searched_rows",
            "search_p_value",
        )
        described = ("split", "trained_until", "validated_until")

        def whose(model: SymbolPart | Checkpoint) -> dict[str, Any]:
            return {"scored_model": {name: getattr(model, name) for name in described}}

        # A symbol that became long enough with the later rows has no scores.
        nothing = {name: SymbolPart.model_fields[name].default for name in scores}
        symbols = {}
        for symbol, part in self.symbols.items():
            there = scored.symbols.get(symbol)
            found = {**{name: getattr(there, name) for name in scores}, **whose(there)} if there else nothing
            symbols[symbol] = part.model_copy(
                update={**found, "latest_window": self._latest_window(prepared, symbol)}
            )
        return self.model_copy(
            update={
                **{name: getattr(scored, name) for name in kept},
                **whose(scored),
                "latest_window": self._latest_window(prepared),
                "symbols": symbols,
            }
        )

    def of_symbol(self, symbol: str) -> Checkpoint:
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

    def of_window(self, normalization: Normalization, symbol: str) -> Checkpoint:
        """The model as that of a symbol that it has never seen, normalized by a window's own statistics."""
        own = {name: type(self).model_fields[name].default for name in SymbolPart.model_fields}
        return self._as_one({**own, "normalization": normalization}, symbol)

    def _as_one(self, own: dict[str, Any], symbol: str) -> Checkpoint:
        """The model with one symbol's own fields, and without those of many."""
        of_many = ("symbols", "left_out", "held_out", "metrics_test_without_market")
        many = {name: type(self).model_fields[name].default for name in of_many}
        config = self.config.model_copy(update={"symbol": symbol})
        return self.model_copy(update={**many, **own, "config": config})

    @property
    def members(self) -> tuple[Member, ...]:
        """The networks whose quantiles are averaged, that of ``model_state`` first."""
        first = Member(
            model_state=self.model_state,
            config=self.config,
            recursions=self.recursions or (window_recursion(self.config),),
            best_epoch=self.best_epoch,
        )
        return (first, *self.further_members)

    @property
    def columns_not_forecast(self) -> list[str]:
        """Input columns that a forecast of many steps would need forecasts of; parts of the bar need none."""
        scalings = self.normalization.scalings[1:]
        named = zip(self.config.input_columns, scalings, strict=True)
        return [name for name, scaling in named if scaling.part is None]

    @property
    def weights(self) -> int:
        """Number of weights of all members."""
        return sum(value.numel() for member in self.members for value in member.model_state.values())

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


def _of_panel(prepared: Prepared, config: TrainConfig) -> dict[str, Any]:
    """The fields of a model of many symbols that say which they are."""
    if isinstance(prepared, PreparedSeries):
        return {}
    symbols = {
        symbol: SymbolPart.of(part, prepared.provenances[symbol]) for symbol, part in prepared.series.items()
    }
    market = prepared.market if config.market else None
    return {"symbols": symbols, "left_out": dict(prepared.left_out), "market": market}


def library_versions() -> dict[str, str]:
    """Versions of Python and of libraries that can change a result."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def save_checkpoint(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write ``checkpoint`` to ``path`` atomically: a reader sees the whole old file or the whole new one.

    Raises:
        OSError: when ``path`` cannot be written or the disk is full; ``path`` is then unchanged.
    """
    feature = checkpoint.normalization.feature
    content = {
        **checkpoint.model_dump(),
        "feature_mean": feature.mean,
        "feature_std": feature.std,
        "schema_version": SCHEMA_VERSION,
    }
    write_atomically(path, lambda stream: torch.save(content, stream))


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of this system or of the original one.

    Raises:
        CheckpointError: when the file is missing, is truncated, holds code, is newer than this version or lacks a key,
            or when its weights do not fit its configuration or are not finite.
    """
    content, sha256 = _read(Path(path))
    version = content.get("schema_version", 0)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: schema version {version} is newer than {SCHEMA_VERSION}, the newest that this version can read; "
            "upgrade this package"
        )
    missing = [key for key in ("model_state", "config", "feature_mean", "feature_std") if key not in content]
    if missing:
        raise CheckpointError(
            f"{path} is not a forecaster checkpoint (no {', '.join(missing)}); {HOW_TO_MAKE_ONE}"
        )
    try:
        checkpoint = from_content(content, sha256)
        _check_weights(checkpoint)
    except UsageError as error:
        raise CheckpointError(f"{path} cannot be used here ({error})") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = _first_line(error)
        raise CheckpointError(f"{path} is not a usable checkpoint ({reason}); {HOW_TO_MAKE_ONE}") from error
    return checkpoint


def from_content(content: dict[str, Any], sha256: str | None = None) -> Checkpoint:
    """The checkpoint in a file's content, of any schema version up to the newest; its weights are not checked.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: when the content is not that of a checkpoint.
    """
    version = content.get("schema_version", 0)
    return Checkpoint.model_validate({**_upgraded(content, version), "sha256": sha256})


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Read a file's content and the hash of exactly these bytes: the file may be replaced in the meantime."""
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}; {HOW_TO_MAKE_ONE}")
    if not path.is_file():
        raise CheckpointError(
            f"{path} is not a file; give a checkpoint's path, for example artifacts/best_pareto_lstm.pt"
        )
    try:
        data = path.read_bytes()
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch names the class or function that it refuses to load; other errors mean that this is not a checkpoint.
        if re.search(r"Unsupported (global|class)|GLOBAL ", str(error)):
            raise CheckpointError(
                f"{path} is refused: it holds more than plain values and tensors and could run code; "
                f"{HOW_TO_MAKE_ONE}"
            ) from error
        raise CheckpointError(f"{path} is damaged or not a checkpoint; {HOW_TO_MAKE_ONE}") from error
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except Exception as error:  # torch.load passes on the errors of its zip and pickle readers
        raise CheckpointError(f"{path} is damaged or not a checkpoint; {HOW_TO_MAKE_ONE}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a forecaster checkpoint; {HOW_TO_MAKE_ONE}")
    return content, hashlib.sha256(data).hexdigest()


def _upgraded(content: dict[str, Any], version: int) -> dict[str, Any]:
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
        for name in Checkpoint.model_fields.keys() - content.keys() - optional:
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
        "metrics_test": metrics and {name: value for name, value in metrics.items() if _is_number(value)},
        "trial_number": number if isinstance(number, int) else None,
        "trial_params": params,
        "schema_version": 0,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _check_weights(checkpoint: Checkpoint) -> None:
    for member in checkpoint.members:
        member.trained_network()
    # Counters of a network, such as those of batch normalization, may be integers.
    weights = [
        value
        for member in checkpoint.members
        for value in member.model_state.values()
        if value.is_floating_point()
    ]
    kinds = {str(value.dtype).removeprefix("torch.") for value in weights}
    if kinds != {"float32"}:
        raise ValueError(f"its weights are {', '.join(sorted(kinds))}; only float32 can be used")
    if not all(bool(torch.isfinite(value).all()) for value in weights):
        raise ValueError("its weights are not finite numbers")
    scalings, columns = checkpoint.normalization.scalings, checkpoint.config.input_columns
    if len(scalings) != 1 + len(columns):
        raise ValueError(f"it has {len(scalings)} scalings for its feature and the columns {columns}")
    for scaling in scalings:
        if not (np.isfinite(scaling.mean) and scaling.std > 0 and scaling.change_std > 0):
            raise ValueError(f"its normalization is impossible: mean {scaling.mean}, std {scaling.std}")
    scores = checkpoint.calibration_scores
    if scores is not None and not (scores.ndim == 1 and len(scores) and np.isfinite(scores).all()):
        raise ValueError("its calibration scores are not finite numbers")


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{' '.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"no {error.args[0]}"
    return str(error).strip().splitlines()[0]
