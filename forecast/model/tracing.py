"""Traced arrays: they record NumPy code as the nodes of an ONNX graph, which computes the same.

The code that encodes windows and decodes outputs is thereby defined once, for training, serving and exported files.
Each traced array holds the value that the code gives for an example, which tells its shape and type; the first axis
(the windows) and nothing else may have another size when the graph runs. What is not traced becomes a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

TO_THE_END = np.iinfo(np.int64).max
TOEPLITZ_FROM = 1000
"""Number of values from which a constant matrix is tested for equal diagonals, which are stored once."""


class Recorder:
    """The nodes and constants of a graph under construction.

    Attributes:
        nodes: in the order in which they run.
        constants: by name.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node with one output, and return the output's name."""
        from onnx import helper

        name = f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        """The name of a constant; equal ones are stored once."""
        array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._names:
            name = self._toeplitz(array)
            if name is None:
                name = f"constant_{len(self.constants)}"
                self.constants[name] = array
            self._names[key] = name
        return self._names[key]

    def input(self, name: str, example: NDArray[Any]) -> Traced:
        """An input of the graph."""
        return Traced(self, name, example)

    def record(self, kind: str, inputs: Sequence[Any], example: Any, **attributes: Any) -> Traced:
        """Add a node whose value for the example is known."""
        return Traced(self, self.node(kind, [self.named(each) for each in inputs], **attributes), example)

    def named(self, value: Any, dtype: Any = None) -> str:
        """The name of a traced array or of a constant, converted to a type if one is given."""
        if not isinstance(value, Traced):
            return self.constant(np.asarray(value, dtype))
        return (value if dtype is None else value.astype(dtype)).name

    def _toeplitz(self, array: NDArray[Any]) -> str | None:
        """A large matrix with equal diagonals as nodes that make it; None for any other constant."""
        if array.ndim != 2 or array.size < TOEPLITZ_FROM or (array[1:, 1:] != array[:-1, :-1]).any():
            return None
        diagonals = np.concatenate([array[::-1, 0], array[0, 1:]])
        rows, columns = (np.arange(size) for size in array.shape)
        places = self.node("Add", [self.constant(rows[::-1, np.newaxis]), self.constant(columns[np.newaxis])])
        return self.node("Gather", [self.constant(diagonals), places], axis=0)


class Traced(NDArrayOperatorsMixin):
    """An array of a graph under construction; NumPy's functions take it, as far as they are known here.

    Attributes:
        name: its name in the graph.
        example: its value for the example.
    """

    def __init__(self, recorder: Recorder, name: str, example: Any) -> None:
        self._recorder, self.name, self.example = recorder, name, np.asarray(example)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape for the example."""
        shape: tuple[int, ...] = self.example.shape
        return shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.example.ndim

    def astype(self, dtype: Any, copy: bool = True) -> Traced:
        """The same numbers as another type."""
        from onnx import helper

        if self.example.dtype == dtype:
            return self
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self._recorder.record("Cast", [self], self.example.astype(dtype), to=to)

    def mean(self, axis: int, dtype: Any = None) -> Traced:
        """The mean over an axis."""
        return self._reduced("ReduceMean", np.mean, axis, dtype)

    def sum(self, axis: int, dtype: Any = None) -> Traced:
        """The sum over an axis."""
        return self._reduced("ReduceSum", np.sum, axis, dtype)

    def clip(self, max: float) -> Traced:  # noqa: A002 - as NumPy and torch call it
        """The numbers, none above ``max``."""
        clipped: Traced = np.minimum(self, max)  # type: ignore[call-overload]  # a traced array
        return clipped

    def places_in(self, table: NDArray[Any]) -> Traced:
        """The numbers of a table (k,) at these places."""
        return self._recorder.record("Gather", [table, self], table[self.example], axis=0)

    def _reduced(self, kind: str, function: Callable[..., Any], axis: int, dtype: Any) -> Traced:
        values = self if dtype is None else self.astype(dtype)
        example = function(values.example, axis=axis)
        # From opset 13 on, sums take their axes as an input; means do so from 18 on.
        if kind == "ReduceSum":
            return self._recorder.record(kind, [values, np.array([axis])], example, keepdims=0)
        return self._recorder.record(kind, [values], example, axes=[axis], keepdims=0)

    def __getitem__(self, index: Any) -> Traced:
        """Slices, single numbers, new axes and ``...``, as NumPy has them."""
        keys = list(index) if isinstance(index, tuple) else [index]
        given = sum(key is not None and key is not ... for key in keys)
        if ... in keys:
            at = keys.index(...)
            keys[at : at + 1] = [slice(None)] * (self.ndim - given)
        record, found = self._recorder.record, self
        axis, dropped, added = 0, [], []
        for key in keys:
            if key is None:
                added.append(axis)
                continue
            if isinstance(key, slice):
                if key.step not in (None, 1):
                    raise TypeError("a slice with a step cannot be exported")
                start, stop = key.start or 0, TO_THE_END if key.stop is None else key.stop
            else:
                start, stop = key, key + 1 if key != -1 else TO_THE_END
                dropped.append(axis)
            if (start, stop) != (0, TO_THE_END):
                chosen = [slice(None)] * axis + [slice(start, None if stop == TO_THE_END else stop)]
                parts = [np.array([number]) for number in (start, stop, axis)]
                found = record("Slice", [found, *parts], found.example[tuple(chosen)])
            axis += 1
        if dropped:
            found = record("Squeeze", [found, np.array(dropped)], np.squeeze(found.example, tuple(dropped)))
        # Positions of new axes are those in the result, where dropped ones no longer count.
        for number, before in enumerate(added):
            place = before - sum(each < before for each in dropped) + number
            found = record("Unsqueeze", [found, np.array([place])], np.expand_dims(found.example, place))
        return found

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs or ufunc.__name__ not in UFUNCS:
            raise TypeError(f"{ufunc.__name__} ({method}) cannot be exported")
        example = ufunc(*(each.example if isinstance(each, Traced) else each for each in inputs))
        return UFUNCS[ufunc.__name__](self._recorder, inputs, example)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function.__name__ not in FUNCTIONS:
            raise TypeError(f"{function.__name__} cannot be exported")
        return FUNCTIONS[function.__name__](self._recorder, *args, **kwargs)


def example_of(value: Any) -> Any:
    """The value for the example of what may be traced, or hold traced arrays."""
    if isinstance(value, list | tuple):
        return [example_of(each) for each in value]
    return value.example if isinstance(value, Traced) else value


def _common(inputs: Sequence[Any]) -> np.dtype[Any]:
    """The type that NumPy computes in."""
    return np.result_type(*(example_of(each) for each in inputs))


def _plain(kind: str, **fixed: Any) -> Callable[..., Traced]:
    """An operator of the same meaning, on inputs of one type."""

    def record(recorder: Recorder, inputs: Sequence[Any], example: Any) -> Traced:
        dtype = _common(inputs)
        return recorder.record(
            kind, [Traced(recorder, recorder.named(each, dtype), ()) for each in inputs], example, **fixed
        )

    return record


def _on_truths(kind: str) -> Callable[..., Traced]:
    return lambda recorder, inputs, example: recorder.record(kind, inputs, example)


def _square(recorder: Recorder, inputs: Sequence[Any], example: Any) -> Traced:
    return recorder.record("Mul", [inputs[0], inputs[0]], example)


def _isnan(recorder: Recorder, inputs: Sequence[Any], example: Any) -> Traced:
    return recorder.record("IsNaN", inputs, example)


def _isfinite(recorder: Recorder, inputs: Sequence[Any], example: Any) -> Traced:
    # Infinity times zero is not a number either.
    unknown = recorder.record("IsNaN", [inputs[0] * 0.0], ~example)
    return recorder.record("Not", [unknown], example)


UFUNCS: dict[str, Callable[..., Traced]] = {
    "absolute": _plain("Abs"),
    "add": _plain("Add"),
    "bitwise_and": _on_truths("And"),
    "divide": _plain("Div"),
    "equal": _plain("Equal"),
    "exp": _plain("Exp"),
    "greater": _plain("Greater"),
    "greater_equal": _plain("GreaterOrEqual"),
    "invert": _on_truths("Not"),
    "isfinite": _isfinite,
    "isnan": _isnan,
    "less": _plain("Less"),
    "log": _plain("Log"),
    "matmul": _plain("MatMul"),
    "maximum": _plain("Max"),
    "minimum": _plain("Min"),
    "multiply": _plain("Mul"),
    "negative": _plain("Neg"),
    "power": _plain("Pow"),
    "sqrt": _plain("Sqrt"),
    "square": _square,
    "subtract": _plain("Sub"),
    "tanh": _plain("Tanh"),
}
"""Operators by the name of NumPy's universal function."""


def _where(recorder: Recorder, condition: Any, yes: Any, no: Any) -> Traced:
    example = np.where(*example_of([condition, yes, no]))
    branches = [Traced(recorder, recorder.named(each, example.dtype), ()) for each in (yes, no)]
    return recorder.record("Where", [condition, *branches], example)


def _concatenate(
    recorder: Recorder, arrays: Sequence[Any], axis: int = 0, dtype: Any = None, casting: str = "same_kind"
) -> Traced:
    example = np.concatenate(example_of(arrays), axis=axis).astype(dtype or _common(arrays))
    same = [Traced(recorder, recorder.named(each, example.dtype), ()) for each in arrays]
    return recorder.record("Concat", same, example, axis=axis)


def _stack(recorder: Recorder, arrays: Sequence[Any], axis: int = 0) -> Traced:
    place = axis + example_of(arrays[0]).ndim + 1 if axis < 0 else axis
    longer = [
        recorder.record("Unsqueeze", [each, np.array([place])], np.expand_dims(example_of(each), place))
        for each in arrays
    ]
    return _concatenate(recorder, longer, place)


def _diff(recorder: Recorder, values: Traced, axis: int = -1) -> Traced:
    before = (slice(None),) * (axis % values.ndim)
    difference: Traced = values[(*before, slice(1, None))] - values[(*before, slice(0, -1))]
    return difference


def _nan_to_num(recorder: Recorder, values: Traced) -> Traced:
    known: Traced = np.where(np.isfinite(values), values, 0.0)  # type: ignore[call-overload]  # a traced array
    return known


def _ones_like(recorder: Recorder, values: Traced) -> Traced:
    shape = recorder.record("Shape", [values], values.shape)
    one = np.ones((), values.example.dtype)
    return recorder.record("Expand", [one, shape], np.ones_like(values.example))


FUNCTIONS: dict[str, Callable[..., Traced]] = {
    "concatenate": _concatenate,
    "diff": _diff,
    "nan_to_num": _nan_to_num,
    "ones_like": _ones_like,
    "stack": _stack,
    "where": _where,
}
"""Operators by the name of NumPy's function."""
