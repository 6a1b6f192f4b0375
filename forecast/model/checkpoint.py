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
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, SerializationInfo, field_serializer
from torch import Tensor, nn

from forecast.atomic import write_atomically
from forecast.config import TrainConfig
from forecast.errors import CheckpointError, UsageError
from forecast.model.card import (
    HOW_TO_MAKE_ONE,
    SCHEMA_VERSION,
    MemberCard,
    ModelCard,
    SymbolPart,
    first_line,
    from_content,
    require_readable,
    require_usable,
)
from forecast.model.exported import is_exported
from forecast.model.network import build_network
from forecast.model.panel import Prepared
from forecast.model.split import Part
from forecast.model.windows import PreparedSeries
from forecast.scores.metrics import Evaluation


class Member(MemberCard):
    """One of the networks whose quantiles a model averages."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model_state: dict[str, Tensor] = Field(description="weights by name, on the CPU")

    def trained_network(self) -> nn.Module:
        """The network with these weights, on the CPU, in eval mode.

        Raises:
            RuntimeError: when the weights do not fit the configuration.
            UsageError: when the network's kind is not known here.
        """
        network = build_network(self.config)
        network.load_state_dict(self.model_state)
        return network.eval()


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


class Checkpoint(ModelCard):
    """A trained model with everything needed to use and judge it."""

    model_state: dict[str, Tensor] = Field(
        description="weights by name, on the CPU; `lstm.*` and `regressor.*` for an LSTM"
    )
    further_members: tuple[Member, ...] = Field(
        default=(), description="networks beyond that of `model_state`; the quantiles of all are averaged"
    )

    @field_serializer("calibration_scores")
    def _as_tensor(self, scores: NDArray[np.float64] | None, info: SerializationInfo) -> Any:
        if scores is None:
            return None
        return scores.tolist() if info.mode == "json" else torch.from_numpy(scores)

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

    @property
    def members(self) -> tuple[Member, ...]:
        """The networks whose quantiles are averaged, that of ``model_state`` first."""
        first = Member(
            model_state=self.model_state,
            config=self.config,
            recursions=self.first_recursions,
            best_epoch=self.best_epoch,
        )
        return (first, *self.further_members)

    @property
    def weights(self) -> int:
        """Number of weights of all members."""
        return sum(value.numel() for member in self.members for value in member.model_state.values())


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
    write_atomically(path, lambda stream: torch.save(_content(checkpoint), stream))


def is_saved(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> bool:
    """Whether the file at ``path`` holds exactly this model; only ``created`` may differ."""
    try:
        content, _ = _read(Path(path))
    except CheckpointError:
        return False
    return _are_equal({**content, "created": None}, {**_content(checkpoint), "created": None})


def _content(checkpoint: Checkpoint) -> dict[str, Any]:
    feature = checkpoint.normalization.feature
    return {
        **checkpoint.model_dump(),
        "feature_mean": feature.mean,
        "feature_std": feature.std,
        "schema_version": SCHEMA_VERSION,
    }


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_are_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    return bool(one == other)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of this system or of the original one.

    Raises:
        CheckpointError: when the file is missing, is truncated, holds code, is newer than this version or lacks a key,
            or when its weights do not fit its configuration or are not finite.
    """
    content, sha256 = _read(Path(path))
    require_readable(content.get("schema_version", 0), path)
    missing = [key for key in ("model_state", "config", "feature_mean", "feature_std") if key not in content]
    if missing:
        raise CheckpointError(
            f"{path} is not a forecaster checkpoint (no {', '.join(missing)}); {HOW_TO_MAKE_ONE}"
        )
    try:
        checkpoint = from_content(content, Checkpoint, sha256)
        _check_weights(checkpoint)
    except UsageError as error:
        raise CheckpointError(f"{path} cannot be used here ({error})") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{path} is not a usable checkpoint ({reason}); {HOW_TO_MAKE_ONE}") from error
    return checkpoint


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Read a file's content and the hash of exactly these bytes: the file may be replaced in the meantime."""
    if is_exported(path):
        raise CheckpointError(
            f"{path} is an exported model, which forecasts and has no weights for torch; give the checkpoint (.pt) "
            "that it was made from"
        )
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
    require_usable(checkpoint)
