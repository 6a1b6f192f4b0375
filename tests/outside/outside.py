"""A package that adds a price source, a metric and a network to the project, as CONTRIBUTING describes."""

import datetime as dt

import numpy as np
import pandas as pd
from torch import nn

from forecast.model.architecture import Architecture
from forecast.prices.table import Table
from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import Metric


def read_walk(request):
    """A source: a random walk, the same for each symbol."""
    generator = np.random.default_rng(len(request.symbol))
    close = 100 * np.exp(np.cumsum(generator.normal(0, 0.02, 600)))
    return Table(
        dates=np.datetime64("2020-01-01") + np.arange(600),
        columns=pd.DataFrame({"Close": close}),
        as_of=dt.date(2030, 1, 1),
        origin="the walk",
    )


def tail_losses(actual, forecasts):
    """Quantile loss of each row at 5 % (Koenker & Bassett 1978)."""
    place = int(np.argmin(np.abs(PROBABILITIES - 0.05)))
    above = actual - forecasts.required_quantiles[:, place]
    return np.maximum(0.05 * above, -0.95 * above)


TAIL = Metric(tail_losses, needs_quantiles=True)


class GRUForecaster(nn.Module):
    """A GRU over the window, then a linear head."""

    def __init__(self, config, channels, outputs):
        super().__init__()
        self.gru = nn.GRU(channels, config.hidden_size, batch_first=True)
        self.head = nn.Linear(config.hidden_size, outputs)
        if config.target == "residual":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, inputs):
        return self.head(self.gru(inputs)[0][:, -1])


class GRU(Architecture):
    """A network that only torch runs."""

    def build(self, config, channels, outputs):
        return GRUForecaster(config, channels, outputs)

    def multiply_adds(self, config):
        return 3 * config.sequence_length * config.hidden_size * (1 + config.hidden_size)


GRU_NETWORK = GRU()
