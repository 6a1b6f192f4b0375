"""Engines that run a checkpoint's networks: torch, or ONNX Runtime where it is faster.

Both take the inputs (n, length, channels), float32, of each of the members' distinct views of a window
(``forecast.model.forecaster.views``), and give outputs (n, members, outputs), float32. On one CPU thread and for one
window at a time, ONNX Runtime takes a tenth to three quarters of torch's time; the smaller the network, the less.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from forecast.errors import CheckpointError, UsageError
from forecast.model.card import ModelCard
from forecast.model.exported import HOW_TO_EXPORT, INPUTS, Exported
from forecast.model.likelihood import OUTPUTS
from forecast.model.market import COLUMNS as MARKET_COLUMNS
from forecast.model.windows import views

if TYPE_CHECKING:
    import torch

    from forecast.model.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

Array = NDArray[np.float32]
EngineName = Literal["auto", "onnx", "torch"]

TOLERANCE = 1e-5
"""Largest difference from torch, relative to the larger of the output and one, at which ONNX Runtime is used."""
CHECKED_WINDOWS = 64
"""Number of windows on which ONNX Runtime is compared with torch before it is used."""


class Engine(Protocol):
    """Networks with their weights, ready to compute.

    Attributes:
        name: ``torch`` or ``onnx``.
        device: the kind of device that it runs on, ``cpu`` or ``cuda``.
    """

    name: str
    device: str

    def __call__(self, inputs: Sequence[Array]) -> Array:
        """Outputs (n, members, outputs) for the inputs (n, length, channels) of each view."""
        ...


class TorchEngine:
    """The networks as they were trained, on a CPU or a GPU."""

    name = "torch"

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        from forecast.model.network import networks

        self.device = device.type
        self._run = networks(checkpoint, device)

    def __call__(self, inputs: Sequence[Array]) -> Array:
        """Outputs (n, members, outputs) for the inputs (n, length, channels) of each view."""
        return self._run(inputs)


class OnnxEngine:
    """The same networks in one graph in ONNX Runtime, on one CPU thread."""

    name = "onnx"
    device = "cpu"

    def __init__(self, networks: bytes) -> None:
        """Make the engine of an ONNX model from the inputs of each view to outputs.

        Raises:
            ImportError: when onnxruntime is not installed.
            Exception: of any kind, when ONNX Runtime cannot run the model.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # More threads are slower for networks of this size, and replicas share the machine.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # The arena never shrinks: it stays as large as the largest batch needed.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(networks, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Sequence[Array]) -> Array:
        """Outputs (n, members, outputs) for the inputs (n, length, channels) of each view."""
        named = {f"{INPUTS}{number}": values for number, values in enumerate(inputs)}
        outputs: Array = self._session.run(None, named)[0]
        for values in inputs:
            if not np.isfinite(values).all():
                # ONNX Runtime's LSTM computes plausible numbers from NaN or infinity; torch does not.
                outputs[~np.isfinite(values).all(axis=(1, 2))] = np.nan
        return outputs

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> OnnxEngine:
        """The engine of a checkpoint's networks.

        Raises:
            UsageError: when onnx or onnxruntime is not installed, or only torch runs this network.
        """
        try:
            from forecast.model.export import networks_model

            return cls(networks_model(checkpoint).SerializeToString())
        except ImportError as error:
            raise UsageError(
                f"engine=onnx: {error.name} is not installed; install it (pip install onnx onnxruntime), or use "
                "engine=torch"
            ) from error


def exported_engine(
    exported: Exported, path: str | os.PathLike[str], device: str, engine: EngineName
) -> OnnxEngine:
    """Build the engine of an exported model, and run it once.

    Args:
        exported: the file's content.
        path: its path, for messages.
        device: ``auto`` or ``cpu``.
        engine: ``auto`` or ``onnx``.

    Raises:
        UsageError: when another device or engine is asked for, or onnxruntime is not installed.
        CheckpointError: when ONNX Runtime cannot run the networks, or they do not fit the card.
    """
    if engine == "torch":
        raise UsageError(
            f"`engine=torch`: {path} runs in ONNX Runtime alone; omit `engine`, or give the .pt file"
        )
    if device not in ("auto", "cpu"):
        raise UsageError(f"`device` {device}: {path} runs on a CPU; use `device=cpu`, or give the .pt file")
    card = exported.card
    expected = (1, len(card.members), OUTPUTS[card.config.likelihood])
    try:
        found = OnnxEngine(exported.networks)
        outputs = found(random_inputs(card, 1))
    except ImportError as error:
        raise UsageError(f"{path} needs {error.name}; install it (pip install onnxruntime)") from error
    except Exception as error:  # ONNX Runtime's errors have no common base class
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path} cannot be run ({reason}); {HOW_TO_EXPORT}") from error
    if outputs.shape != expected:
        raise CheckpointError(
            f"{path} does not fit its card: its networks give {outputs.shape}, not {expected}; {HOW_TO_EXPORT}"
        )
    return found


def build_engine(checkpoint: Checkpoint, device: torch.device, engine: EngineName) -> Engine:
    """Build the fastest engine on ``device`` whose outputs agree with torch's.

    Args:
        checkpoint: the model.
        device: where the network runs.
        engine: ``auto`` is ONNX Runtime on a CPU if it is installed and agrees with torch; otherwise torch, which on a
            CPU logs the reason as a warning.

    Raises:
        UsageError: when ``engine`` is ``onnx`` and it is not installed, disagrees, or cannot run on ``device``.
    """
    by_torch = TorchEngine(checkpoint, device)
    if engine == "torch" or (engine == "auto" and device.type != "cpu"):
        return by_torch
    try:
        return _agreeing_onnx(checkpoint, device, by_torch)
    except UsageError as error:
        if engine == "onnx":
            raise
        logger.warning("forecasting with torch, which is slower: %s", error)
        return by_torch


def _agreeing_onnx(checkpoint: Checkpoint, device: torch.device, by_torch: TorchEngine) -> OnnxEngine:
    """Build the ONNX engine and check that its outputs agree with torch's.

    Raises:
        UsageError: when it cannot run on ``device``, cannot run this model, or disagrees.
    """
    if device.type != "cpu":
        raise UsageError(f"engine=onnx runs on a CPU, not on {device.type}; use engine=torch")
    inputs = random_inputs(checkpoint, CHECKED_WINDOWS)
    try:
        by_onnx = OnnxEngine.of(checkpoint)
        difference = disagreement(by_onnx, by_torch, inputs)
    except UsageError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise UsageError(f"engine=onnx cannot run this model ({error}); use engine=torch") from error
    if not difference <= TOLERANCE:
        raise UsageError(
            f"engine=onnx: ONNX Runtime differs from torch by {difference:.1e} for this model, more than "
            f"{TOLERANCE:.0e}; use engine=torch"
        )
    return by_onnx


def random_inputs(checkpoint: ModelCard, count: int, seed: int = 0) -> list[Array]:
    """Inputs (count, length, channels) of each view, of random walks in and beyond the training range."""
    distinct, _ = views(checkpoint.encodings)
    scales = checkpoint.normalization.change_stds
    shape = (count, checkpoint.rows_used, len(scales))
    changes = np.random.default_rng(seed).standard_t(3, shape) * scales
    walks = np.random.default_rng(seed + 1).normal(0, 2, (count, 1, 1)) + np.cumsum(changes, axis=1)
    market = np.random.default_rng(seed + 2).normal(0, 1, (*shape[:2], MARKET_COLUMNS))
    return [encoding.encode(encoding.with_market(walks, market))[0] for encoding in distinct]


def disagreement(one: Engine, other: Engine, inputs: Sequence[Array]) -> float:
    """Largest difference between two engines' outputs, relative to the larger of the output and one.

    One is the unit of outputs: a standard deviation of the training changes, or of the training prices.
    """
    ours, theirs = one(inputs), other(inputs)
    return float(np.max(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs)), initial=0.0))
