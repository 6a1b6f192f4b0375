"""Metrics: requests, their latency, windows outside the training range, and the served models.

Requests are counted in plain Python where they are answered; a separate task hands the counts to Ray, whose agent on
each node serves them to Prometheus.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass, field

from ray.serve import metrics

from serve_app.catalog import Catalog
from serve_app.models import Models

PUBLISH_EVERY_S = 0.25
"""Seconds between hand-overs: short, so that none blocks the event loop for long."""
MOST_SYMBOLS = 50
"""Most symbols with time series of their own: Prometheus keeps each of them, and so is slow with thousands."""
MANY = "(many)"
"""The label ``symbol`` where there are more."""
MODELS_EVERY = 8
"""Hand-overs between updates of the models' state: two seconds, so that a change is visible soon."""
LATENCY_BUCKETS_S = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]


@dataclass
class Measurements:
    """The counts since the last ``take``.

    Attributes:
        requests: answers by route and status.
        seconds: the route of each answer, and its time from the request's headers to the answer.
        out_of_range: windows outside the training range by ``label_of`` their symbol.
        reloads: attempts to load models by outcome, ``loaded`` or ``refused``.
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: list[tuple[str, float]] = field(default_factory=list)
    out_of_range: Counter[str] = field(default_factory=Counter)
    reloads: Counter[str] = field(default_factory=Counter)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self.requests[route, status] += 1
        self.seconds.append((route, seconds))

    def take(self) -> Measurements:
        """Return the counts, and start again from zero."""
        taken = Measurements(self.requests, self.seconds, self.out_of_range, self.reloads)
        self.__init__()  # type: ignore[misc]
        return taken


class Publisher:
    """Hands measurements to Ray; create it inside a replica."""

    def __init__(self) -> None:
        self._requests = metrics.Counter(
            "forecast_requests_total",
            "Requests answered.",
            tag_keys=("route", "status"),  # type: ignore[arg-type]  # Ray's hint says one key
        )
        self._seconds = metrics.Histogram(
            "forecast_request_duration_seconds",
            "Time from a request's headers to its answer.",
            boundaries=LATENCY_BUCKETS_S,
            tag_keys=("route",),
        )
        self._out_of_range = metrics.Counter(
            "forecast_out_of_range_inputs_total",
            "Windows with a price outside the training range.",
            tag_keys=("symbol",),
        )
        self._reloads = metrics.Counter(
            "forecast_model_reloads_total", "Attempts to load models.", tag_keys=("outcome",)
        )
        self._models = metrics.Gauge(
            "forecast_model_info",
            "1 for a loaded model, 0 for a model no longer loaded; version is the model file's SHA-256, shortened.",
            tag_keys=("symbol", "version"),  # type: ignore[arg-type]
        )
        self._symbols = metrics.Gauge(
            "forecast_symbols",
            "Symbols by state: ready (loaded when asked for), loaded, or refused because their file cannot be used.",
            tag_keys=("state",),
        )
        self._refused = metrics.Gauge(
            "forecast_model_refused",
            "1 while the last attempt to load a checkpoint was refused.",
        )
        self._shown: set[tuple[str, str]] = set()

    def publish(self, taken: Measurements) -> None:
        """Hand the measurements to Ray."""
        for (route, status), count in taken.requests.items():
            self._requests.inc(count, tags={"route": route, "status": str(status)})
        for route, seconds in taken.seconds:
            self._seconds.observe(seconds, tags={"route": route})
        for symbol, count in taken.out_of_range.items():
            self._out_of_range.inc(count, tags={"symbol": symbol})
        for outcome, count in taken.reloads.items():
            self._reloads.inc(count, tags={"outcome": outcome})

    def show_models(self, models: Models) -> None:
        """Report which models are served; Ray drops a gauge that is not set again within some seconds."""
        catalog, loaded = models.catalog, list(models.loaded)
        served = {(model.symbol, short_version(model.version)) for model in loaded}
        if len(catalog.by_symbol) > MOST_SYMBOLS:
            # One file has one version; the versions of many files would be as many time series as their symbols.
            served = {(MANY, version) for _, version in served} if len(catalog.files) == 1 else set()
        for symbol, version in self._shown | served:
            self._models.set((symbol, version) in served, tags={"symbol": symbol, "version": version})
        self._shown = served
        counts = {
            "ready": len(catalog.by_symbol) - len(loaded),
            "loaded": len(loaded),
            "refused": len(catalog.refused),
        }
        for state, count in counts.items():
            self._symbols.set(count, tags={"state": state})
        self._refused.set(models.refusal is not None)

    async def publish_forever(self, measurements: Measurements, models: Models) -> None:
        """Publish every ``PUBLISH_EVERY_S`` seconds, and the state of the models every ``MODELS_EVERY`` times."""
        for turn in itertools.count():
            if turn % MODELS_EVERY == 0:
                self.show_models(models)
            await asyncio.sleep(PUBLISH_EVERY_S)
            self.publish(measurements.take())


def label_of(symbol: str, catalog: Catalog) -> str:
    """The label of a symbol: the symbol itself, unless there are too many."""
    return symbol if len(catalog.by_symbol) <= MOST_SYMBOLS else MANY


def short_version(sha256: str) -> str:
    """Shorten a hash; enough is left to tell models apart."""
    return sha256[:12]
