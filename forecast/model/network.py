"""Networks by name.

The rest of the project knows a network only by its configuration. A package adds a network with an entry point in the
group ``forecast.networks``, a process with ``ARCHITECTURES.add``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forecast.config import TrainConfig
from forecast.model.architecture import Architecture
from forecast.model.likelihood import OUTPUTS, Outputs
from forecast.model.lstm import LSTM
from forecast.model.windows import channels, views
from forecast.registry import Registry

if TYPE_CHECKING:
    import onnx

    from forecast.model.checkpoint import Checkpoint

INFERENCE_BATCH = 1024
"""Windows per forward pass without gradients: small enough to bound memory, large enough not to cost time."""

ARCHITECTURES: Registry[Architecture] = Registry(
    "network", "forecast.networks", {"lstm": LSTM()}, accepts=Architecture
)
"""Every network by its name in ``TrainConfig.network``."""


def build_network(config: TrainConfig) -> nn.Module:
    """Build the untrained network of a configuration.

    Raises:
        UsageError: when no network has that name.
    """
    architecture = ARCHITECTURES.find(config.network)
    return architecture.build(config, channels(config), OUTPUTS[config.likelihood])


def multiply_adds(config: TrainConfig) -> int:
    """Multiply-adds of one window through the network of a configuration."""
    return ARCHITECTURES.find(config.network).multiply_adds(config)


def onnx_graph(config: TrainConfig, state: dict[str, Tensor]) -> onnx.ModelProto:
    """Convert a trained network to an ONNX graph: ``inputs`` (n, length, channels) to ``outputs`` (n, outputs).

    Raises:
        ImportError: when onnx is not installed.
        UsageError: when only torch runs this network.
    """
    return ARCHITECTURES.find(config.network).onnx_graph(config, state)


class Splittable(Protocol):
    """Model inputs (n, length, channels): a tensor, or what makes one for some windows at a time."""

    def split(self, size: int, /) -> Iterable[Tensor]:
        """The inputs of so many windows at a time."""
        ...


def forward_in_batches(network: nn.Module, inputs: Splittable) -> Tensor:
    """Outputs (n, outputs) for inputs (n, length, channels) without gradients or dropout.

    ``network`` is left in eval mode.
    """
    network.eval()
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in inputs.split(INFERENCE_BATCH)])


def networks(
    checkpoint: Checkpoint, device: torch.device | None = None
) -> Callable[[Sequence[NDArray[np.float32]]], Outputs]:
    """Run a checkpoint's networks with torch, on the CPU unless a device is given."""
    trained = [member.trained_network().to(device) for member in checkpoint.members]
    _, numbers = views(checkpoint.encodings)

    def run(inputs: Sequence[NDArray[np.float32]]) -> Outputs:
        each = [
            forward_in_batches(network, torch.from_numpy(inputs[number]).to(device)).cpu().numpy()
            for network, number in zip(trained, numbers, strict=True)
        ]
        return np.stack(each, axis=1)

    return run
