"""Models of every kind whose weights are random: what a file can hold does not depend on training."""

from dataclasses import replace

import numpy as np
import torch

from forecast.config import TrainConfig
from forecast.model.checkpoint import Checkpoint, Member
from forecast.model.network import build_network
from forecast.model.panel import prepare_panel
from forecast.model.volatility import HISTORY, Recursion
from forecast.model.windows import prepare
from forecast.prices.panel import Panel

BARS = ("Open", "High", "Low")
COLUMNS = ("Close", *BARS, "Volume")

FITTED = Recursion(omega=0.02, alpha=0.05, gamma=0.04, beta=0.91, history=HISTORY)
RANGED = replace(FITTED, beta=0.7, delta=0.2, range_mean=0.8)


def bars(snapshot, seed=0, rows=400):
    """A series of made-up bars with the snapshot's dates."""
    generator = np.random.default_rng(seed)
    closes = np.exp(generator.normal(4, 1) + np.cumsum(0.02 * generator.standard_t(5, rows)))
    opens = closes * np.exp(0.01 * generator.normal(size=rows))
    spread = np.exp(0.02 * generator.random((2, rows)))
    volumes = np.exp(generator.normal(10, 1, rows))
    ends = np.stack([closes, opens])
    columns = [closes, opens, ends.max(axis=0) * spread[0], ends.min(axis=0) / spread[1], volumes]
    return replace(
        snapshot,
        dates=snapshot.dates[:rows],
        matrix=np.stack(columns, axis=1),
        columns=COLUMNS,
        symbol=f"S{seed}",
    )


def chosen(series, columns):
    """The series with some of its columns."""
    places = [COLUMNS.index(name) for name in columns]
    return replace(series, matrix=series.matrix[:, places], columns=tuple(columns))


def panel_of(snapshot, count, columns=("Close",)):
    series = {f"S{seed}": chosen(bars(snapshot, seed), columns) for seed in range(count)}
    return Panel(series)


def untrained(data, config, seed=0, further=()):
    """A checkpoint of random weights; ``further`` changes the options of each further member."""
    if isinstance(data, Panel):
        prepared = prepare_panel(data, config, config.sequence_length)
    else:
        # A fit would take most of a test's time.
        prepared = replace(prepare(data, config), shared_recursion=FITTED, shared_range_recursion=RANGED)
    torch.manual_seed(seed)
    first = prepared.parts[0]
    members = [config.model_copy(update=changes) for changes in ({}, *further)]
    made = [
        Member(model_state=random_state(each), config=each, recursions=first.encoding(each).recursions)
        for each in members
    ]
    checkpoint = Checkpoint.create(
        model_state=made[0].model_state,
        config=config,
        prepared=prepared,
        val_loss_best=1.0,
        best_epoch=1,
        device="cpu",
        provenance={},
        further_members=tuple(made[1:]),
    )
    scores = np.random.default_rng(seed).standard_t(4, 200)
    learned = config.likelihood != "mse"
    return checkpoint.model_copy(
        update={
            "calibration_scores": np.sort(np.abs(scores) if learned else scores),
            "horizon_stretches": {1: 1.1, 5: 1.2},
        }
    )


def random_state(config):
    network = build_network(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return network.state_dict()


def config_of(**options):
    """Small networks, with other options as given."""
    small = {"source": "x", "sequence_length": 12, "hidden_size": 6, "num_layers": 1, "members": 1}
    return TrainConfig(**small | options)
