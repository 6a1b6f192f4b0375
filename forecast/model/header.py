"""What a checkpoint says about itself, read without its weights: a tenth of the time that loading it takes.

A server of a thousand checkpoints reads their headers at its start, and loads a model when it is first asked for.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.errors import CheckpointError
from forecast.model.card import HOW_TO_MAKE_ONE, SCHEMA_VERSION, ModelCard, from_content
from forecast.model.exported import is_exported, read_card
from forecast.model.loading import load_card

STORAGES = frozenset(
    f"{name}Storage" for name in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Bool")
)
"""torch's names for the numbers of a stored tensor."""


@dataclass(frozen=True)
class Header:
    """What a checkpoint forecasts, and from what.

    Attributes:
        symbols: the symbols that it was trained on.
        pooled: whether it is a model of many symbols, which also forecasts others.
        columns: the columns that it sees for each bar; the first is the feature that it forecasts.
        sequence_length: number of past values that a forecast needs.
        rows_used: number of past values that a forecast uses where they are known.
    """

    symbols: tuple[str, ...]
    pooled: bool
    columns: tuple[str, ...]
    sequence_length: int
    rows_used: int

    @classmethod
    def of(cls, card: ModelCard) -> Header:
        """The header of a model."""
        config = card.config
        return cls(
            symbols=tuple(card.symbols) or (config.symbol,),
            pooled=bool(card.symbols),
            columns=(config.feature, *config.input_columns),
            sequence_length=card.sequence_length,
            rows_used=card.rows_used,
        )


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of a checkpoint or of an exported model; a file of an unusual form is loaded as a whole.

    Damage outside the header is found only when the checkpoint is loaded.

    Raises:
        CheckpointError: as ``load_card``.
    """
    if is_exported(path):
        return Header.of(read_card(path))
    try:
        return Header.of(_without_weights(path))
    except CheckpointError:
        raise
    except Exception:  # of any kind: loading the file succeeds, or says what is wrong with it
        return Header.of(load_card(path))


def _without_weights(path: str | os.PathLike[str]) -> ModelCard:
    """Read a checkpoint's plain values; its tensors have their shapes, and zeros.

    Raises:
        CheckpointError: when the file would unpack to more than its size: checkpoints are not packed.
        Exception: of any kind, when it has another form.
    """
    with Path(path).open("rb") as stream, zipfile.ZipFile(stream) as archive:
        size = os.fstat(stream.fileno()).st_size
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise CheckpointError(
                f"{path} is refused: it is packed, and could fill the memory; {HOW_TO_MAKE_ONE}"
            )
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        content = _PlainValues(archive.read(name), size).load()
    if content.get("schema_version", 0) > SCHEMA_VERSION:
        raise ValueError("newer than this version")
    return from_content(content, ModelCard)


class _PlainValues(pickle.Unpickler):
    """Reads plain values and the shapes of tensors. As with ``torch.load(weights_only=True)``, a file cannot run code:
    every name that it may refer to is given a meaning here."""

    def __init__(self, data: bytes, most_values: int) -> None:
        """Read ``data``, in which no tensor has more than ``most_values``."""
        super().__init__(io.BytesIO(data))

        def rebuilt(dtype: str, offset: int, shape: tuple[int, ...], *_: Any) -> NDArray[np.float64]:
            """Stands in for torch's function of this signature, which makes a tensor from a storage."""
            if math.prod(shape) > most_values:
                raise pickle.UnpicklingError(f"a tensor of shape {shape} is larger than the file")
            # Takes no memory, whatever the shape.
            return np.broadcast_to(np.float64(0), shape)

        self._rebuilt = rebuilt

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuilt
        if module == "torch" and name in STORAGES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not a plain value")

    def persistent_load(self, pid: Any) -> Any:
        """The type of a storage's numbers, which ``("storage", type, ...)`` refers to."""
        return pid[1]
