"""Exported models: one ONNX file that holds a model's card and a graph from prices to forecasts.

The graph has three parts: the encoding of prices, the networks, and the decoding of their outputs. Any ONNX runtime
runs it as a whole. This package takes the networks out of it and does the rest itself, with the code that the graph was
made from: without torch, and without the package onnx, whose format
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto) is read here as far as it is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from forecast.errors import CheckpointError
from forecast.model.card import ModelCard, first_line, from_content, require_readable, require_usable

Found = TypeVar("Found")

SUFFIX = ".onnx"
HOW_TO_EXPORT = "make it again with `python -m forecast export`"

CARD, COST, CHECKSUM = "card", "multiply_adds", "sha256"
"""Keys of the file's metadata: the model's card as JSON, the multiply-adds of a forecast, and the ``checksum``."""
NETWORKS = "networks/"
"""Start of the names of the networks' nodes and weights."""
INPUTS, OUTPUTS = "inputs_", "outputs"
"""Names of the networks' inputs, one per view of a window, and of their outputs."""

SIZED_BY_VALUES = frozenset(
    {
        "BlackmanWindow",
        "ConstantOfShape",
        "ConvTranspose",
        "DFT",
        "Expand",
        "HammingWindow",
        "HannWindow",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "OneHot",
        "Pad",
        "RandomNormal",
        "RandomUniform",
        "Range",
        "Resize",
        "RoiAlign",
        "Tile",
        "Upsample",
    }
)
"""Operators whose output's size is set by a value; no network needs them."""

VERSION, GRAPH, OPERATORS, METADATA = 1, 7, 8, 14
"""Numbers of the fields of a model."""
NODE, NAME, WEIGHT, INPUT, OUTPUT, DESCRIPTION = 1, 2, 5, 11, 12, 13
"""Numbers of the fields of a graph."""
NODE_NAME, KIND, ATTRIBUTE, DOMAIN = 3, 4, 5, 7
"""Numbers of the fields of a node."""
OF_ATTRIBUTE, GRAPHS_OF_ATTRIBUTE = 5, (6, 11, 22, 23)
"""Numbers of the fields of an attribute that hold a tensor, and graphs or sparse tensors."""
TYPE, FLOATS, TENSOR_NAME, RAW, ELSEWHERE = 2, 4, 8, 9, (13, 14)
"""Numbers of the fields of a tensor."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Protocol Buffers' types of fields."""
FLOAT = 1
"""ONNX's number for float32."""


@dataclass(frozen=True)
class Exported:
    """The content of an exported model.

    Attributes:
        card: the model without its weights.
        networks: an ONNX model of the networks alone, from the inputs of each view to the outputs.
        multiply_adds: multiply-adds of one forecast, of all members together.
    """

    card: ModelCard
    networks: bytes
    multiply_adds: int


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of an exported model, by its name."""
    return Path(path).suffix.lower() == SUFFIX


def read_card(path: str | os.PathLike[str]) -> ModelCard:
    """Read the card of an exported model, and nothing else of it.

    Raises:
        CheckpointError: when the file is missing or damaged, is no exported model, or is newer than this version.
    """
    return _read(Path(path), lambda data: _card(path, _metadata(data), None))


def load_exported(path: str | os.PathLike[str]) -> Exported:
    """Read and check an exported model.

    Raises:
        CheckpointError: as ``read_card``; also when its weights are not finite, or a network could do more than
            compute.
    """

    return _read(Path(path), lambda data: exported_from(data, path))


def exported_from(data: bytes, path: str | os.PathLike[str]) -> Exported:
    """The exported model in a file's content.

    Raises:
        CheckpointError: when it is newer than this version; messages call the file ``path``.
        KeyError, IndexError, TypeError, ValueError, AttributeError: when it is no exported model, or is damaged.
    """
    metadata = _metadata(data)
    if checksum(data) != metadata[CHECKSUM]:
        raise ValueError("its content does not fit its checksum")
    card = _card(path, metadata, hashlib.sha256(data).hexdigest())
    cost = int(metadata[COST])
    if cost < 1:
        raise ValueError(f"{COST} is {cost}")
    return Exported(card, _networks(data), cost)


def checksum(data: bytes) -> str:
    """SHA-256, in hexadecimal, of a file's content without its checksum: it shows damage on the way."""
    digest = hashlib.sha256()
    for number, value in _fields(data):
        if number != METADATA or isinstance(value, int) or _text(value, 1) != CHECKSUM:
            digest.update(_number_field(number, value) if isinstance(value, int) else _field(number, value))
    return digest.hexdigest()


def _read(path: Path, read: Callable[[bytes], Found]) -> Found:
    if not path.exists():
        raise CheckpointError(f"no exported model at {path}; make one with `python -m forecast export`")
    if not path.is_file():
        raise CheckpointError(
            f"{path} is not a file; give the path of an exported model, for example model.onnx"
        )
    try:
        return read(path.read_bytes())
    except CheckpointError:
        raise
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or not an exported model ({first_line(error)}); {HOW_TO_EXPORT}"
        ) from error


def _card(path: str | os.PathLike[str], metadata: dict[str, str], sha256: str | None) -> ModelCard:
    content = json.loads(metadata[CARD])
    require_readable(content["schema_version"], path)
    card = from_content(content, ModelCard, sha256)
    require_usable(card)
    return card


def _metadata(data: bytes) -> dict[str, str]:
    return {_text(pair, 1): _text(pair, 2) for pair in _all(data, METADATA)}


def _graph(data: bytes) -> memoryview:
    graphs = _all(data, GRAPH)
    if len(graphs) != 1:
        raise ValueError("no graph")
    return graphs[0]


def _networks(data: bytes) -> bytes:
    """An ONNX model of the networks in a file's graph.

    Raises:
        ValueError: when a node or a weight could do more than compute, or weights are not finite.
    """
    graph = _graph(data)
    parts = [_field(NAME, b"networks")]
    for node in _all(graph, NODE):
        if _text(node, NODE_NAME).startswith(NETWORKS):
            _require_harmless(node)
            parts.append(_field(NODE, node))
    for weight in _all(graph, WEIGHT):
        if _text(weight, TENSOR_NAME).startswith(NETWORKS):
            _require_finite(weight)
            parts.append(_field(WEIGHT, weight))
    # Descriptions of values inside the graph become those of the inputs, and of the output.
    for described in _all(graph, DESCRIPTION):
        name = _text(described, 1)
        if name == OUTPUTS or name.startswith(INPUTS):
            parts.append(_field(OUTPUT if name == OUTPUTS else INPUT, described))
    operators = [_field(OPERATORS, each) for each in _all(data, OPERATORS)]
    version = _number_field(VERSION, _number(data, VERSION))
    return b"".join([version, *operators, _field(GRAPH, b"".join(parts))])


def _require_harmless(node: memoryview) -> None:
    kind, domain, attributes = _text(node, KIND), _text(node, DOMAIN), _all(node, ATTRIBUTE)
    holds_graphs = any(_all(attribute, field) for attribute in attributes for field in GRAPHS_OF_ATTRIBUTE)
    for attribute in attributes:
        for tensor in _all(attribute, OF_ATTRIBUTE):
            _require_finite(tensor)
    if domain or holds_graphs or kind in SIZED_BY_VALUES:
        raise ValueError(f"the operator {domain or kind} is not one of a network")


def _require_finite(tensor: memoryview) -> None:
    if any(number in ELSEWHERE for number, _ in _fields(tensor)):
        raise ValueError("a weight is stored outside the file")
    if _number(tensor, TYPE) == FLOAT:
        for values in (*_all(tensor, RAW), *_all(tensor, FLOATS)):
            if not np.isfinite(np.frombuffer(values, np.float32)).all():
                raise ValueError("its weights are not finite numbers")


def _fields(data: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: their numbers, and their values, which are numbers or bytes.

    Raises:
        ValueError, IndexError: when it is no message.
    """
    view, at = memoryview(data), 0
    while at < len(view):
        key, at = _read_varint(view, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _read_varint(view, at)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, at = _read_varint(view, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"no field has the type {kind}")
        if at + size > len(view):
            raise ValueError("its end is missing")
        yield key >> 3, view[at : at + size]
        at += size


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte, at = view[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has no end")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _number_field(number: int, value: int) -> bytes:
    return _varint(number << 3 | VARINT) + _varint(value)


def _field(number: int, value: bytes | memoryview) -> bytes:
    return b"".join([_varint(number << 3 | BYTES), _varint(len(value)), value])


def _all(data: bytes | memoryview, wanted: int) -> list[memoryview]:
    return [value for number, value in _fields(data) if number == wanted and isinstance(value, memoryview)]


def _number(data: bytes | memoryview, wanted: int) -> int:
    (value,) = (value for number, value in _fields(data) if number == wanted and isinstance(value, int))
    return value


def _text(data: memoryview, wanted: int) -> str:
    # Other readers of Protocol Buffers take the last of several values, and must not see another value than this one.
    values = _all(data, wanted)
    if len(values) > 1:
        raise ValueError(f"field {wanted} is there twice")
    return str(values[0], "utf-8") if values else ""
