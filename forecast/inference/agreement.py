"""How far the graph of an exported model is from its checkpoint, on random windows of prices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.errors import CheckpointError, ForecastError
from forecast.inference.engines import TOLERANCE, exported_engine
from forecast.model.card import first_line
from forecast.model.checkpoint import Checkpoint
from forecast.model.export import PRICE, PRICES, QUANTILES, SAME_SESSION, SYMBOL, exported_model
from forecast.model.exported import exported_from
from forecast.model.forecaster import Forecaster
from forecast.model.likelihood import distribution, point_forecasts
from forecast.model.market import least_symbols, moves_of
from forecast.model.network import networks
from forecast.model.normalization import Normalization
from forecast.scores.distribution import PROBABILITIES

Array = NDArray[np.float64]

UNSEEN = -1
"""The number of a symbol that a model of many was not trained on."""
UNSEEN_ONES = 4
"""Least number of windows of such symbols in a full batch."""


def exported_and_checked(
    checkpoint: Checkpoint, path: str | os.PathLike[str], windows: int
) -> tuple[bytes, float]:
    """The content of an exported model's file, and its largest difference from the checkpoint on random windows.

    Raises:
        UsageError: when onnx or onnxruntime is not installed, or only torch runs the network.
        CheckpointError: when the file could not be read again, or its forecasts are not those of the checkpoint;
            messages call it ``path``.
    """
    try:
        data = exported_model(checkpoint).SerializeToString()
        exported_engine(exported_from(data, path), path, "auto", "onnx")
        difference = float(differences(checkpoint, data, windows).max())
    except ForecastError:
        raise
    except Exception as error:  # those of onnx and ONNX Runtime have no common base class
        raise CheckpointError(
            f"this model cannot be exported ({first_line(error)}); serve the checkpoint"
        ) from error
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"this model cannot be exported: ONNX Runtime differs from torch by {difference:.1e} of a price, more than "
            f"{TOLERANCE:.0e}; serve the checkpoint"
        )
    return data, difference


def random_prices(normalization: Normalization, rows: int, seed: int) -> Array:
    """A random walk of prices (rows, columns) in and beyond the training range."""
    generator, scales = np.random.default_rng(seed), normalization.change_stds
    changes = generator.standard_t(3, (rows, len(scales))) * scales
    return normalization.denormalize(generator.normal() + np.cumsum(changes, axis=0))


def differences(checkpoint: Checkpoint, graph: bytes, windows: int, seed: int = 0) -> Array:
    """Each window's largest difference between the graph's outputs and the checkpoint's in torch, (n,), n >= windows.

    The difference is relative to the price. For models of plain prices, it is relative to a standard deviation of the
    training prices where the price is less. For models of log prices, it is also relative to the logarithm of a
    quantile's distance from the last price, where that distance is a factor of more than e: networks compute
    logarithms, with the seven digits of float32.

    The windows of a batch have different numbers of rows, from the least to the most that a forecast uses. For a model
    of many symbols, the windows are of all its symbols and of symbols that it has never seen. A model that sees the
    market gets at least two batches: in the first, the third and so on, all windows are of one session.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    given = [each.name for each in session.get_outputs()]
    generator, run = np.random.default_rng(seed), networks(checkpoint)
    symbols, left = list(checkpoint.symbols), windows
    found: list[Array] = []
    sees_market = checkpoint.market is not None
    while left > 0 or (sees_market and len(found) < 2):
        whole = max(len(symbols) + UNSEEN_ONES, 32)
        count = whole if sees_market else min(whole, left)
        left -= count
        most = int(generator.integers(checkpoint.sequence_length, checkpoint.rows_used, endpoint=True))
        lengths = generator.integers(checkpoint.sequence_length, most, size=count, endpoint=True)
        lengths[generator.random(count) < 0.5] = most
        lengths[0] = most
        feeds: dict[str, NDArray[Any]] = {}
        numbers = np.full(count, UNSEEN)
        if symbols:
            numbers = np.pad(np.arange(len(symbols)), (0, whole - len(symbols)), constant_values=UNSEEN)
            numbers = feeds[SYMBOL] = generator.permutation(numbers)[:count]
        prices = np.full((count, most, 1 + len(checkpoint.config.input_columns)), np.nan)
        for window, number, length in zip(prices, numbers, lengths, strict=True):
            own = checkpoint.of_symbol(symbols[number]) if number >= 0 else checkpoint
            window[-length:] = random_prices(own.normalization, length, int(generator.integers(2**31)))
        feeds[PRICES] = prices
        together = sees_market and len(found) % 2 == 0
        if sees_market:
            feeds[SAME_SESSION] = np.array([together])
        answers = dict(zip(given, session.run(None, feeds), strict=True))
        given_windows = [window[-length:] for window, length in zip(prices, lengths, strict=True)]
        found.append(_differences(checkpoint, run, given_windows, numbers, answers, together=together))
    return np.concatenate(found)


def _differences(
    checkpoint: Checkpoint,
    run: Any,
    windows: Sequence[Array],
    numbers: NDArray[np.int64],
    answers: dict[str, Array],
    *,
    together: bool,
) -> Array:
    config, symbols = checkpoint.config, list(checkpoint.symbols)
    names = [config.feature, *config.input_columns]
    cards, rows = [], []
    for window, number in zip(windows, numbers, strict=True):
        card = checkpoint
        if number >= 0:
            card = checkpoint.of_symbol(symbols[number])
        elif symbols:
            card = checkpoint.of_window(Normalization.fit(window, names, log=config.log_prices), "unseen")
        cards.append(card)
        rows.append(card.normalization.normalize(window))
    market = None
    if checkpoint.market is not None and together and (numbers >= 0).sum() >= least_symbols(len(symbols)):
        count = max(map(len, rows))
        known = [(own, card) for own, card, number in zip(rows, cards, numbers, strict=True) if number >= 0]
        changes = [np.diff(own[:, 0]) / card.normalization.feature.change_std for own, card in known]
        places = [np.arange(count - len(own) + 1, count) for own, _ in known]
        market = checkpoint.market.columns(moves_of(changes, places, count))
    forecasters = [Forecaster.of(card, run) for card in cards]
    seen = [
        each.inputs(
            each.encoding.with_market(
                own[np.newaxis], None if market is None else market[np.newaxis, -len(own) :]
            )
        )
        for each, own in zip(forecasters, rows, strict=True)
    ]
    outputs = run([np.concatenate(views) for views in zip(*(inputs for inputs, _ in seen), strict=True)])
    volatility = np.concatenate([found for _, found in seen])
    exact = distribution(config.likelihood, outputs, volatility, checkpoint.calibration_scores)
    wanted: dict[str, NDArray[Any]] = {PRICE: point_forecasts(outputs)[:, np.newaxis]}
    if exact is not None:
        wanted[QUANTILES] = exact.quantiles(PROBABILITIES)
    largest = np.zeros(len(windows))
    for name, values in wanted.items():
        for index, (each, own) in enumerate(zip(forecasters, rows, strict=True)):
            right = each.encoding.prices(values[index : index + 1], own[-1:, 0])[0]
            feature = each.encoding.normalization.feature
            if feature.log:
                far = np.abs(np.log(right) - feature.mean - feature.std * own[-1, 0])
                scale = right * np.maximum(1.0, far)
            else:
                scale = np.maximum(np.abs(right), feature.std)
            answer = np.atleast_1d(answers[name][index])
            # Python's max would ignore an answer that is NaN.
            largest[index] = np.maximum(largest[index], np.max(np.abs(answer - right) / scale))
    return largest
