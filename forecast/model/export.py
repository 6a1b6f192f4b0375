"""Exports a checkpoint as an ONNX file that needs no torch (``forecast.model.exported`` reads it).

The graph takes raw prices and gives the distribution of the next one in prices. It is made by running this package's
own code on traced arrays (``forecast.model.tracing``), around the graphs of the networks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forecast.errors import UsageError
from forecast.model.card import SCHEMA_VERSION
from forecast.model.exported import CARD, CHECKSUM, COST, INPUTS, NETWORKS, OUTPUTS, checksum
from forecast.model.forecaster import Forecaster
from forecast.model.likelihood import OUTPUTS as NUMBERS
from forecast.model.likelihood import distribution, point_forecasts
from forecast.model.market import Market, bounded, least_symbols, moves_of_sums
from forecast.model.network import multiply_adds, onnx_graph
from forecast.model.normalization import Normalization, rounding_of
from forecast.model.tracing import Recorder, Traced
from forecast.model.windows import Encoding, views
from forecast.scores.distribution import PROBABILITIES, Distribution, StudentT, t_polynomials

if TYPE_CHECKING:
    import onnx

    from forecast.model.checkpoint import Checkpoint

EXAMPLES = 2
"""Windows of the example that is traced."""

PRICES, SYMBOL, SAME_SESSION = "prices", "symbol", "same_session"
"""The graph's inputs; a model of one symbol has the first alone."""
PRICE, QUANTILES, PROBABILITIES_OF = "price", "quantiles", "probabilities"
"""The graph's outputs; a model without a distribution has the first alone."""


def networks_model(checkpoint: Checkpoint) -> onnx.ModelProto:
    """One graph of all members: from the inputs of each view (n, length, channels) to outputs (n, members, outputs).

    Raises:
        ImportError: when onnx is not installed.
        UsageError: when only torch runs a member's network.
    """
    from onnx import TensorProto, checker, compose, helper, numpy_helper

    _, numbers = views(checkpoint.encodings)
    one = f"{NETWORKS}one"
    nodes, constants, inputs, names = [], [numpy_helper.from_array(np.array([1]), one)], {}, []
    for index, (member, number) in enumerate(zip(checkpoint.members, numbers, strict=True)):
        prefix = f"{NETWORKS}{index}/"
        model = compose.add_prefix(onnx_graph(member.config, member.model_state), prefix)
        (taken,), (given,) = model.graph.input, model.graph.output
        channels = taken.type.tensor_type.shape.dim[2].dim_value
        # Of each view: a name that two dimensions share would say that they are equal.
        shape = ["n", f"length_{number}", channels]
        inputs[number] = helper.make_tensor_value_info(f"{INPUTS}{number}", TensorProto.FLOAT, shape)
        names.append(f"{prefix}member")
        nodes += [
            helper.make_node("Identity", [f"{INPUTS}{number}"], [taken.name]),
            *model.graph.node,
            helper.make_node("Unsqueeze", [given.name, one], [names[-1]]),
        ]
        constants += model.graph.initializer
    nodes.append(helper.make_node("Concat", names, [OUTPUTS], axis=1))
    for number, node in enumerate(nodes):
        node.name = f"{NETWORKS}{number}"
    graph = helper.make_graph(
        nodes,
        "networks",
        list(inputs.values()),
        [helper.make_tensor_value_info(OUTPUTS, TensorProto.FLOAT, ["n", len(names), None])],
        constants,
    )
    pooled = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    checker.check_model(pooled)
    return pooled


def exported_model(checkpoint: Checkpoint) -> onnx.ModelProto:
    """The whole graph of a model, with its card.

    Raises:
        UsageError: when onnx is not installed, or only torch runs a member's network.
    """
    try:
        from onnx import checker, helper, numpy_helper

        networks = networks_model(checkpoint)
    except ImportError as error:
        raise UsageError(
            f"{error.name} is not installed, which the export needs; install it (pip install onnx)"
        ) from error
    with np.errstate(all="ignore"):
        tracing = _Tracing(checkpoint)
        tracing.trace()
    recorder = tracing.recorder
    before, after = recorder.nodes[: tracing.split], recorder.nodes[tracing.split :]
    graph = helper.make_graph(
        [*before, *networks.graph.node, *after],
        "forecaster",
        tracing.inputs,
        tracing.outputs,
        [
            *networks.graph.initializer,
            *(numpy_helper.from_array(value, name) for name, value in recorder.constants.items()),
            *tracing.defaults,
        ],
        value_info=[*networks.graph.input, *networks.graph.output],
    )
    model = helper.make_model(
        graph,
        opset_imports=networks.opset_import,
        ir_version=networks.ir_version,
        producer_name="pareto-price-forecaster",
    )
    _add_card(model, checkpoint)
    checker.check_model(model, full_check=True)
    return model


def _add_card(model: onnx.ModelProto, checkpoint: Checkpoint) -> None:
    weights: Any = {"model_state": True, "further_members": {"__all__": {"model_state"}}}
    card = {**checkpoint.model_dump(mode="json", exclude=weights), "schema_version": SCHEMA_VERSION}
    if math.isnan(checkpoint.val_loss_best):
        card["val_loss_best"] = None  # an original checkpoint may lack it, and JSON has no NaN
    cost = sum(multiply_adds(member.config) for member in checkpoint.members)
    describe(model, {CARD: json.dumps(card, allow_nan=False), COST: str(cost)})


def describe(model: onnx.ModelProto, metadata: dict[str, str]) -> None:
    """Set a model's metadata, and its checksum."""
    from onnx import helper

    helper.set_model_props(model, metadata)
    helper.set_model_props(model, {**metadata, CHECKSUM: checksum(model.SerializeToString())})


class _OfEachWindow(Normalization):
    """The scalings of each of n windows: their numbers have the shape (n, 1)."""

    @property
    def change_stds(self) -> Any:
        """``change_std`` of each column, shape (n, 1, columns)."""
        return np.stack([scaling.change_std for scaling in self.scalings], axis=-1)


class _Tracing:
    """The encoding and the decoding of one model's graph."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.recorder = Recorder()
        self._checkpoint = checkpoint
        self._rows, self._columns = checkpoint.rows_used, 1 + len(checkpoint.config.input_columns)
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.defaults: list[onnx.TensorProto] = []
        self.split = 0
        """Number of nodes before the networks."""

    def trace(self) -> None:
        """Record the code."""
        checkpoint, recorder = self._checkpoint, self.recorder
        prices: Any = self._prices()
        symbols = self._symbols(prices) if checkpoint.symbols else None
        normalization = self._normalization(prices, symbols)
        encodings = tuple(replace(each, normalization=normalization) for each in checkpoint.encodings)
        forecaster = Forecaster(encodings, _not_run, checkpoint.calibration_scores, checkpoint.dynamics)
        encoding = encodings[0]
        columns = [normalization.column(prices, i) for i in range(self._columns)]
        normalized: Any = np.stack(columns, axis=-1)
        market = self._market(normalized, symbols, encoding, checkpoint.market)
        rows = encoding.with_market(normalized, market) if checkpoint.config.market else normalized
        views_, volatility = forecaster.inputs(rows)
        usable = self._usable(prices, normalized, views_)
        for number, each in enumerate(views_):
            recorder.nodes.append(_named("Identity", [recorder.named(each)], f"{INPUTS}{number}"))
        self.split = len(recorder.nodes)
        shape = (EXAMPLES, len(encodings), NUMBERS[checkpoint.config.likelihood])
        outputs: Any = recorder.input(OUTPUTS, np.zeros(shape, np.float32))
        last = normalized[:, -1, 0]
        points: Any = point_forecasts(outputs)
        # As columns, (n, 1): the units of each window then are one too.
        price = encoding.prices(points[:, np.newaxis], last)[:, 0]
        self._output(PRICE, np.where(usable, price, np.nan))
        found = distribution(checkpoint.config.likelihood, outputs, volatility, checkpoint.calibration_scores)
        if found is not None:
            quantiles = encoding.prices(_quantiles(found), last)
            self._output(QUANTILES, np.where(usable[:, np.newaxis], quantiles, np.nan))
            self._output(PROBABILITIES_OF, recorder.record("Identity", [PROBABILITIES], PROBABILITIES))

    def _prices(self) -> Any:
        """The last rows of each window, and unknown ones before a window that is shorter."""
        rows, columns = self._rows, self._columns
        given = self._input(PRICES, np.full((EXAMPLES, rows, columns), 1.0), ["n", "rows", columns])
        count = self.recorder.record("Shape", [given], np.array([EXAMPLES]), end=1)
        shape = self.recorder.record(
            "Concat",
            [count, np.array([rows]), np.array([columns])],
            np.array([EXAMPLES, rows, columns]),
            axis=0,
        )
        unknown = self.recorder.record("Expand", [np.nan, shape], np.full((EXAMPLES, rows, columns), np.nan))
        latest: Any = np.concatenate([unknown, given], axis=1)[:, -rows:]
        # Rows of which a forecast uses nothing, but which the code expects.
        before = max(each.length + each.history for each in self._checkpoint.encodings) - rows
        return np.concatenate([unknown[:, :before], latest], axis=1) if before > 0 else latest

    def _symbols(self, prices: Traced) -> Traced:
        """The number of each window's symbol, (n,)."""
        given = self._input(SYMBOL, np.zeros(1, np.int64), ["symbols"], default=True)
        count = self.recorder.record("Shape", [prices], np.array([EXAMPLES]), end=1)
        return self.recorder.record("Expand", [given, count], np.zeros(EXAMPLES, np.int64))

    def _normalization(self, prices: Traced, symbols: Traced | None) -> Normalization:
        """The model's; of a model of many symbols, that of each window's symbol, or of the window itself."""
        if symbols is None:
            return self._checkpoint.normalization
        parts = [part.normalization.scalings for part in self._checkpoint.symbols.values()]
        scalings = []
        known: Any = symbols >= 0
        at: Any = np.maximum(symbols, 0)  # type: ignore[call-overload]  # a traced array
        feature = None
        for column, first in enumerate(parts[0]):
            values = prices[..., column]
            scaled: Any = np.log(values) if first.log else values
            if feature is None:
                feature = scaled
            elif first.part:
                scaled = scaled - feature
            mean, std = _moments(scaled)
            _, change_std = _moments(np.diff(scaled, axis=1))
            varies = (std > rounding_of(mean)) & (change_std > rounding_of(mean))
            std = np.where(varies, std, np.nan)
            numbers = {"mean": mean, "std": std, "change_std": change_std / std}
            for name, own in numbers.items():
                table = np.array([getattr(scaling[column], name) for scaling in parts])
                theirs: Any = at.places_in(table)
                numbers[name] = np.where(known, theirs, own)[:, np.newaxis]
            scalings.append(replace(first, **numbers))
        return _OfEachWindow(tuple(scalings))

    def _market(
        self, normalized: Any, symbols: Traced | None, encoding: Encoding, market: Market | None
    ) -> Any:
        """The market's columns (n, rows, 2), from the windows of one session together where they are told to be."""
        if market is None or symbols is None:
            return None
        same: Any = self._input(SAME_SESSION, np.zeros(1, np.bool_), [1], default=True)
        changes = np.diff(normalized[..., 0], axis=1) / encoding.normalization.feature.change_std
        seen = np.isfinite(changes) & (symbols >= 0)[:, np.newaxis]
        soft = np.where(seen, bounded(changes), 0.0)
        sums = [each.sum(axis=0) for each in (seen.astype(np.float64), soft, np.square(soft))]
        moves = np.concatenate([np.full((1, 2), np.nan), moves_of_sums(*sums)], axis=0)
        columns = market.columns(moves)
        trained = (symbols >= 0).astype(np.float64).sum(axis=0)
        shown = same & (trained >= float(least_symbols(len(self._checkpoint.symbols))))
        # An axis of the windows, (n, 1, 1), whatever their symbols.
        each = (symbols >= symbols)[:, np.newaxis, np.newaxis]
        # Before its own rows, a window does not see the market.
        own = np.isfinite(normalized[..., :1])
        return np.where(shown & each & own, columns[np.newaxis], np.nan)

    def _usable(self, prices: Any, normalized: Any, views_: Sequence[Any]) -> Any:
        """Whether each window (n,) has the rows that the model needs, and only prices that the model can use.

        ``Predictor`` refuses all other windows. ONNX Runtime does not: its LSTM computes plausible numbers from NaN.
        """
        whole, length = float(self._columns), self._checkpoint.sequence_length
        known = np.isfinite(normalized).astype(np.float64).sum(axis=2) >= whole
        empty = np.isnan(prices).astype(np.float64).sum(axis=2) >= whole
        wrong = [~known & ~empty, known[:, :-1] & empty[:, 1:], ~known[:, -length:]]
        counts = [each.astype(np.float64).sum(axis=1) for each in wrong]
        counts += [(~np.isfinite(each)).astype(np.float64).sum(axis=2).sum(axis=1) for each in views_]
        return sum(counts) < 1.0

    def _input(self, name: str, example: NDArray[Any], shape: list[Any], *, default: bool = False) -> Traced:
        from onnx import helper, numpy_helper

        kind = helper.np_dtype_to_tensor_dtype(example.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        if default:
            self.defaults.append(numpy_helper.from_array(example, name))
        return self.recorder.input(name, example)

    def _output(self, name: str, value: Any) -> None:
        from onnx import helper

        self.recorder.nodes.append(_named("Identity", [value.name], name))
        kind = helper.np_dtype_to_tensor_dtype(value.example.dtype)
        shape = list(value.shape) if name == PROBABILITIES_OF else ["n", *value.shape[1:]]
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))


def _named(kind: str, inputs: Sequence[str], output: str) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node(kind, inputs, [output])


def _not_run(inputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    raise AssertionError("the networks are graphs of their own")


def _moments(values: Any) -> tuple[Any, Any]:
    """Mean and population standard deviation (n,) of the known ones of values (n, k), as ``Scaling.fit``."""
    known = np.isfinite(values)
    count = known.astype(np.float64).sum(axis=1)
    mean = np.where(known, values, 0.0).sum(axis=1) / count
    squares = np.where(known, np.square(values - mean[:, np.newaxis]), 0.0)
    return mean, np.sqrt(squares.sum(axis=1) / count)


def _quantiles(found: Distribution) -> Any:
    """Quantiles (n, k) at ``PROBABILITIES``."""
    if not isinstance(found, StudentT):
        return found.quantiles(PROBABILITIES)
    polynomials = t_polynomials(tuple(PROBABILITIES))
    df: Any = found.df
    powers = (4 / df - 1)[..., np.newaxis] ** np.arange(len(polynomials), dtype=np.float64)
    return found.placed(powers @ polynomials)
