"""One trained model as one file, safe to load and honest about where it came from.

The file is a dictionary that ``torch.load(weights_only=True)`` reads: plain values and tensors, no code.
Its first eight keys are those of the original system, whose files load too.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from forecast.atomic import write_atomically
from forecast.config import TrainConfig
from forecast.errors import CheckpointError
from forecast.evaluation import Evaluation
from forecast.likelihood import OUTPUTS
from forecast.model import LSTMForecaster
from forecast.normalization import Normalization
from forecast.windows import Encoding, PreparedSeries

Array = NDArray[np.float64]

SCHEMA_VERSION = 2
HOW_TO_MAKE_ONE = "make one with `python -m tune_jobs.pareto` or `python -m forecast train`"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with everything needed to use it and to judge it.

    Attributes:
        model_state: weights, keys ``lstm.*`` and ``regressor.*``, on the CPU.
        config: every option it was trained with.
        normalization: statistics of its training rows.
        val_loss_best: lowest validation loss, in units of the model's output.
        further: normalizations of the further columns that the model sees, in the order of ``config.input_columns``.
        errors: ``forecast.likelihood.standard_errors`` on the validation rows, ascending; None for files
            of before there were intervals.
        metrics_test: metrics by name on the test rows; None while the test rows are untouched.
        metrics_validation: the same on the validation rows; None for files of the original system.
        persistence: persistence's metrics by part (``validation``, ``test``) and name.
        intervals: how the intervals of each level did, by part, as plain values of ``forecast.evaluation.Coverage``.
        trial_number: number of its trial in the study; None when trained alone.
        trial_params: the hyperparameters the search chose; empty when trained alone.
        split: last training and validation dates and row counts; empty for files of the original system.
        provenance: where the prices came from; None for files of the original system.
        versions: library versions at training, and the kind of device it ran on.
        created: UTC time of training, ISO 8601.
        best_epoch: the epoch of ``model_state``.
        configurations_tried: configurations that were trained before this one was chosen; None where nobody has
            counted.
        searched_rows: rows that the search knew which chose the configuration; None when trained alone.
        train_range: least and largest training price; None for files of the original system.
        latest_window: the last ``sequence_length`` values of the series it was scored on, in price units, rows of them
            where there are further columns; None while the test rows are untouched.
        sha256: of the file it was loaded from, in hexadecimal; None for one that was not.
    """

    model_state: dict[str, Tensor]
    config: TrainConfig
    normalization: Normalization
    val_loss_best: float
    further: tuple[Normalization, ...] = ()
    errors: Array | None = None
    metrics_test: dict[str, float] | None = None
    metrics_validation: dict[str, float] | None = None
    persistence: dict[str, dict[str, float]] = field(default_factory=dict)
    intervals: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    trial_number: int | None = None
    trial_params: dict[str, Any] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    created: str | None = None
    best_epoch: int | None = None
    configurations_tried: int | None = None
    searched_rows: int | None = None
    train_range: tuple[float, float] | None = None
    latest_window: list[Any] | None = None
    schema_version: int = SCHEMA_VERSION
    sha256: str | None = None

    @classmethod
    def create(
        cls,
        *,
        model_state: dict[str, Tensor],
        config: TrainConfig,
        prepared: PreparedSeries,
        val_loss_best: float,
        best_epoch: int,
        validation: Evaluation,
        errors: Array,
        device: str,
        provenance: dict[str, Any],
        trial_number: int | None = None,
        trial_params: dict[str, Any] | None = None,
        searched_rows: int | None = None,
    ) -> Checkpoint:
        """A checkpoint of a model just trained, without test metrics."""
        return cls(
            model_state=model_state,
            config=config,
            normalization=prepared.normalization,
            val_loss_best=val_loss_best,
            further=prepared.further,
            errors=errors,
            metrics_validation=validation.model,
            persistence={"validation": validation.persistence},
            intervals={"validation": list(validation.to_dict()["intervals"])},
            trial_number=trial_number,
            trial_params=dict(trial_params or {}),
            searched_rows=searched_rows,
            split=dataclasses.asdict(prepared.split),
            provenance=provenance,
            versions={**library_versions(), "device": device},
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            best_epoch=best_epoch,
            train_range=prepared.train_range,
        )

    def with_test(
        self, test: Evaluation, prepared: PreparedSeries, configurations_tried: int | None = None
    ) -> Checkpoint:
        """The same checkpoint with its measures on the test rows of ``prepared``, and persistence's, filled in."""
        return dataclasses.replace(
            self,
            metrics_test=test.model,
            persistence={**self.persistence, "test": test.persistence},
            intervals={**self.intervals, "test": list(test.to_dict()["intervals"])},
            configurations_tried=configurations_tried,
            latest_window=prepared.latest_window(self.config.sequence_length),
        )

    @property
    def encoding(self) -> Encoding:
        """How prices become inputs of this model and its outputs become prices."""
        return Encoding(self.normalization, self.config.target, self.config.likelihood, self.further)

    def build_model(self) -> LSTMForecaster:
        """The network with these weights, on the CPU, in eval mode."""
        model = LSTMForecaster(
            self.config.hidden_size,
            self.config.num_layers,
            channels=self.encoding.channels,
            outputs=OUTPUTS[self.config.likelihood],
            zero_head=False,
        )
        model.load_state_dict(self.model_state)
        return model.eval()


def library_versions() -> dict[str, str]:
    """Versions that can change a result."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def save_checkpoint(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write ``checkpoint`` to ``path`` in one step: a reader sees the old file or the new one, whole.

    Raises:
        OSError: when the place cannot be written or the disk is full; nothing at ``path`` has changed.
    """
    content = {
        "model_state": checkpoint.model_state,
        "config": checkpoint.config.model_dump(mode="json"),
        "feature_mean": checkpoint.normalization.mean,
        "feature_std": checkpoint.normalization.std,
        "val_loss_best": checkpoint.val_loss_best,
        "metrics_test": checkpoint.metrics_test,
        "trial_number": checkpoint.trial_number,
        "trial_params": checkpoint.trial_params,
        "schema_version": checkpoint.schema_version,
        "normalization": checkpoint.normalization.to_dict(),
        "further": [scaling.to_dict() for scaling in checkpoint.further],
        "errors": None if checkpoint.errors is None else torch.from_numpy(checkpoint.errors),
        "metrics_validation": checkpoint.metrics_validation,
        "persistence": checkpoint.persistence,
        "intervals": checkpoint.intervals,
        "split": checkpoint.split,
        "provenance": checkpoint.provenance,
        "versions": checkpoint.versions,
        "created": checkpoint.created,
        "best_epoch": checkpoint.best_epoch,
        "configurations_tried": checkpoint.configurations_tried,
        "searched_rows": checkpoint.searched_rows,
        "train_range": checkpoint.train_range,
        "latest_window": checkpoint.latest_window,
    }
    write_atomically(path, lambda stream: torch.save(content, stream))


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, of this system or of the original one.

    Raises:
        CheckpointError: when the file is missing, truncated, holds code, is newer than this version,
            lacks a key, or its weights do not fit its configuration or are not finite.
    """
    content, sha256 = _read(Path(path))
    version = content.get("schema_version", 0)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: schema version {version} is newer than {SCHEMA_VERSION}, the newest this version reads; "
            "upgrade this package"
        )
    missing = [key for key in ("model_state", "config", "feature_mean", "feature_std") if key not in content]
    if missing:
        raise CheckpointError(
            f"{path} is not a forecaster checkpoint (no {', '.join(missing)}); {HOW_TO_MAKE_ONE}"
        )
    try:
        checkpoint = _from_original(content) if version == 0 else _from_content(content)
        _check_weights(checkpoint)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = _first_line(error)
        raise CheckpointError(f"{path} is not a usable checkpoint ({reason}); {HOW_TO_MAKE_ONE}") from error
    return dataclasses.replace(checkpoint, sha256=sha256)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """What a file holds, and the hash of just those bytes: it may be replaced while it is read."""
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
        # torch names what it will not load, a class or a function; anything else is not a checkpoint at all.
        if re.search(r"Unsupported (global|class)|GLOBAL ", str(error)):
            raise CheckpointError(
                f"{path} holds more than plain values and tensors, which could run code, and is refused; "
                f"{HOW_TO_MAKE_ONE}"
            ) from error
        raise CheckpointError(f"{path} is damaged or not a checkpoint; {HOW_TO_MAKE_ONE}") from error
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except Exception as error:  # torch.load raises whatever its zip and pickle readers stumble over
        raise CheckpointError(f"{path} is damaged or not a checkpoint; {HOW_TO_MAKE_ONE}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a forecaster checkpoint; {HOW_TO_MAKE_ONE}")
    return content, hashlib.sha256(data).hexdigest()


def _from_content(content: dict[str, Any]) -> Checkpoint:
    # What schema 1 had no word for was not there yet: its models are those of mean squared error.
    return Checkpoint(
        model_state=content["model_state"],
        config=TrainConfig.model_validate({"likelihood": "mse", **content["config"]}),
        normalization=Normalization(**content["normalization"]),
        val_loss_best=content["val_loss_best"],
        further=tuple(Normalization(**scaling) for scaling in content.get("further", ())),
        errors=None if content.get("errors") is None else content["errors"].numpy(),
        metrics_test=content["metrics_test"],
        metrics_validation=content["metrics_validation"],
        persistence=content["persistence"],
        intervals=content.get("intervals", {}),
        trial_number=content["trial_number"],
        trial_params=content["trial_params"],
        split=content["split"],
        provenance=content["provenance"],
        versions=content["versions"],
        created=content["created"],
        best_epoch=content["best_epoch"],
        configurations_tried=content.get("configurations_tried"),
        searched_rows=content.get("searched_rows"),
        train_range=content.get("train_range"),
        latest_window=content.get("latest_window"),
        schema_version=content["schema_version"],
    )


def _from_original(content: dict[str, Any]) -> Checkpoint:
    """A file of the original system: normalized price levels in and out, no logarithm.

    Its configuration had options of its own (paths, for example): those unknown here are left out. The
    network's size is read from the weights, which cannot be wrong about it.
    """
    state = content["model_state"]
    params = dict(content.get("trial_params") or {})
    found = {**dict(content["config"]), **params}
    if "sequence_length" not in found:
        raise KeyError("sequence_length in its config")
    known = {name: found[name] for name in TrainConfig.model_fields if name in found}
    layers = {match.group(1) for key in state if (match := re.fullmatch(r"lstm\.weight_hh_l(\d+)", key))}
    known |= {
        "hidden_size": int(state["lstm.weight_hh_l0"].shape[1]),
        "num_layers": len(layers),
        "target": "level",
        "likelihood": "mse",
        "log_prices": False,
        "device": "auto",
        "source": "auto",
    }
    return Checkpoint(
        model_state=state,
        config=TrainConfig.model_validate(known),
        normalization=Normalization(
            mean=float(content["feature_mean"]), std=float(content["feature_std"]), change_std=1.0, log=False
        ),
        val_loss_best=float(content.get("val_loss_best", float("nan"))),
        metrics_test=content.get("metrics_test"),
        trial_number=content.get("trial_number"),
        trial_params=params,
        schema_version=0,
    )


def _check_weights(checkpoint: Checkpoint) -> None:
    checkpoint.build_model()
    kinds = {str(value.dtype).removeprefix("torch.") for value in checkpoint.model_state.values()}
    if kinds != {"float32"}:
        raise ValueError(f"its weights are {', '.join(sorted(kinds))}; only float32 can be used")
    if not all(bool(torch.isfinite(value).all()) for value in checkpoint.model_state.values()):
        raise ValueError("its weights are not finite numbers")
    if len(checkpoint.further) != len(checkpoint.config.input_columns):
        raise ValueError(
            f"it has {len(checkpoint.further)} normalizations for the columns {checkpoint.config.input_columns}"
        )
    for scale in (checkpoint.normalization, *checkpoint.further):
        if not (np.isfinite(scale.mean) and scale.std > 0 and scale.change_std > 0):
            raise ValueError(f"its normalization is impossible: mean {scale.mean}, std {scale.std}")
    errors = checkpoint.errors
    if errors is not None and not (errors.ndim == 1 and len(errors) and np.isfinite(errors).all()):
        raise ValueError("its errors on validation rows are not finite numbers")


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"config {'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"no {error.args[0]}"
    return str(error).strip().splitlines()[0]
