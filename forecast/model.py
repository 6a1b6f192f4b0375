"""The network: an LSTM over the window, then a linear head on its last hidden state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from forecast.errors import UsageError

DEFAULT_GPU_SHARE = 0.25
"""Share of a GPU that one of these networks is given, where GPUs are shared out: it fills a fraction of one."""


class LSTMForecaster(nn.Module):
    """One or a few numbers per window.

    The submodules are called ``lstm`` and ``regressor`` so that weights of the original system load as
    they are.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        dropout: float = 0.0,
        *,
        channels: int = 1,
        outputs: int = 1,
        zero_head: bool,
    ) -> None:
        """Build the network.

        Args:
            hidden_size: width of each LSTM layer.
            num_layers: number of LSTM layers.
            dropout: dropout between layers; one layer has none.
            channels: numbers it sees of each step.
            outputs: numbers it gives.
            zero_head: start with outputs of exactly zero, which for a residual target is persistence.
        """
        super().__init__()
        self.lstm = nn.LSTM(
            input_size=channels,
            hidden_size=hidden_size,
            num_layers=num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.regressor = nn.Linear(hidden_size, outputs)
        if zero_head:
            nn.init.zeros_(self.regressor.weight)
            nn.init.zeros_(self.regressor.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs of shape (n, length, channels) to outputs of shape (n, outputs)."""
        hidden, _ = self.lstm(inputs)
        outputs: Tensor = self.regressor(hidden[:, -1])
        return outputs


def multiply_adds(sequence_length: int, hidden_size: int, num_layers: int) -> int:
    """Multiply-adds of one window's way through the LSTM: what a trial's time is about proportional to.

    A layer's four gates each multiply its input and its hidden state at every step (Hochreiter &
    Schmidhuber 1997; Gers et al. 2000); the head, the elementwise rest and inputs beyond the first are
    left out.
    """
    inputs = [1] + [hidden_size] * (num_layers - 1)
    return sequence_length * sum(4 * hidden_size * (width + hidden_size) for width in inputs)


def choose_device(device: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: when CUDA is asked for by name and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: no CUDA device is available here; use --device cpu or auto")
    return torch.device(device)


def device_for_share(gpu_ids: Sequence[object] | None) -> str:
    """CUDA for a process that was given a share of a GPU, and only where torch can see it; else the CPU.

    A process without a share keeps off the GPUs it can see: they are others'.
    """
    return "cuda" if gpu_ids and torch.cuda.is_available() else "cpu"
