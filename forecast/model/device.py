"""The device that a network computes on, and its number of threads; torch is imported by what uses it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from forecast.errors import UsageError

if TYPE_CHECKING:
    import torch

DEFAULT_GPU_SHARE = 0.25
"""Share of a GPU that one network gets where GPUs are shared: networks of this size fill only a fraction."""


def choose_device(device: str) -> torch.device:
    """Choose the device called ``device``; ``auto`` is CUDA if available, else the CPU.

    Raises:
        UsageError: when ``device`` names CUDA and none is available.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"`device` {device}: no CUDA device is available here; use `device=cpu` or auto")
    return torch.device(device)


def device_for_share(gpu_ids: Sequence[object] | None) -> str:
    """Choose CUDA for a process with a share of a GPU that torch can see, else the CPU.

    A process without a share keeps off the GPUs that it can see: they belong to other processes.
    """
    if not gpu_ids:
        return "cpu"
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute on ``count`` threads: their number changes sums, and so the last digits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
