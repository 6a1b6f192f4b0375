"""What the rest of the project needs to know of a kind of network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from forecast.config import TrainConfig
from forecast.errors import UsageError

if TYPE_CHECKING:
    import onnx


class Architecture(ABC):
    """One kind of network.

    A network takes inputs (n, length, channels) and gives outputs (n, outputs), both float32; what they mean is said by
    ``forecast.model.windows.Encoding`` and ``forecast.model.likelihood``.
    """

    @abstractmethod
    def build(self, config: TrainConfig, channels: int, outputs: int) -> nn.Module:
        """An untrained network; with a residual target its outputs are exactly zero, which is persistence."""

    @abstractmethod
    def multiply_adds(self, config: TrainConfig) -> int:
        """Multiply-adds of one window, to which the time of a trial and of a forecast is about proportional."""

    def onnx_graph(self, config: TrainConfig, state: dict[str, Tensor]) -> onnx.ModelProto:
        """A trained network as an ONNX graph from ``inputs`` to ``outputs``.

        Raises:
            ImportError: when onnx is not installed.
            UsageError: for a network that only torch runs, unless a subclass says otherwise.
        """
        raise UsageError(f"engine=onnx: the network {config.network} has no ONNX graph; use engine=torch")
