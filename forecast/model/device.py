"""Where a network computes, and on how many threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from forecast.errors import UsageError

DEFAULT_GPU_SHARE = 0.25
"""Share of a GPU that one network gets where GPUs are shared: networks of this size fill a fraction of one."""


def choose_device(device: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: when CUDA is asked for by name and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"`device` {device}: no CUDA device is available here; use `device=cpu` or auto")
    return torch.device(device)


def device_for_share(gpu_ids: Sequence[object] | None) -> str:
    """CUDA for a process that was given a share of a GPU, and only where torch can see it; else the CPU.

    A process without a share keeps off the GPUs that it can see: other processes were given them.
    """
    return "cuda" if gpu_ids and torch.cuda.is_available() else "cpu"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute on ``count`` threads: sums, and so the last digits, depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
