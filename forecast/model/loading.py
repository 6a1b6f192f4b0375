"""Model files of either kind: checkpoints, which torch reads, and exported models, which need no torch."""

from __future__ import annotations

import os

from forecast.model.card import ModelCard
from forecast.model.exported import is_exported, load_exported


def load_card(path: str | os.PathLike[str]) -> ModelCard:
    """Read and check a whole model file, for what it says about its model.

    Raises:
        CheckpointError: when it cannot be used.
    """
    if is_exported(path):
        return load_exported(path).card
    from forecast.model.checkpoint import load_checkpoint

    return load_checkpoint(path)
