"""Metrics: requests, their latency, windows outside the training range, the served models, and their live records.

Requests are counted in plain Python where they are answered; a separate task hands the counts to Ray, whose agent on
each node serves them to Prometheus. The live records come from the ledger, which a thread reads.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray.serve import metrics

from serve_app.catalog import Catalog
from serve_app.live import LiveLedger, NoLedger
from serve_app.models import Models, logger
from serve_app.recording import Recorder

if TYPE_CHECKING:
    from forecast.live.record import LiveRecord, Record

PUBLISH_EVERY_S = 0.25
"""Seconds between hand-overs: short, so that none blocks the event loop for long."""
MOST_SYMBOLS = 50
"""Most symbols with time series of their own: Prometheus keeps each of them, and so is slow with thousands."""
MANY = "(many)"
"""The label ``symbol`` where there are more."""
MODELS_EVERY = 8
"""Hand-overs between updates of the models' state: two seconds, so that a change is visible soon."""
LEDGER_EVERY_S = 30.0
"""Seconds between looks at the ledger."""
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
        self._ratio = metrics.Gauge(
            "forecast_live_crps_ratio",
            "CRPS of the published forecasts of the next session, divided by that of a baseline, since the promotion.",
            tag_keys=("name", "baseline"),  # type: ignore[arg-type]
        )
        self._coverage = metrics.Gauge(
            "forecast_live_coverage",
            "Share of prices inside the published intervals of the next session, since the last promotion.",
            tag_keys=("name", "level"),  # type: ignore[arg-type]
        )
        self._sessions = metrics.Gauge(
            "forecast_live_sessions", "Sessions with scores since the last promotion.", tag_keys=("name",)
        )
        self._age_seconds = metrics.Gauge(
            "forecast_live_age_seconds", "Seconds since the last publication.", tag_keys=("name",)
        )
        self._age_sessions = metrics.Gauge(
            "forecast_live_age_sessions",
            "Sessions that have ended since the last session that the published forecast knows, by its calendar.",
            tag_keys=("name",),
        )
        self._alarm = metrics.Gauge(
            "forecast_live_alarm",
            "1 for an alarm that is on, 0 for one that is over.",
            tag_keys=("name", "alarm"),  # type: ignore[arg-type]
        )
        self._ledger_refused = metrics.Gauge(
            "forecast_ledger_refused", "1 while the ledger exists but cannot be read."
        )
        self._recorded = metrics.Counter(
            "forecast_recorded_requests_total",
            "Sampled requests by outcome: recorded in the ledger, or dropped.",
            tag_keys=("outcome",),
        )
        self._shown: set[tuple[str, str]] = set()
        self._live: list[LiveRecord] = []
        self._stamp: dict[str, Any] | None = None
        self._ledger_problem: str | None = None

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

    async def read(self, ledger: LiveLedger) -> None:
        """Read the live records, if they have changed."""

        def look(record: Record) -> None:
            stamp = record.stamp()
            if stamp != self._stamp:
                self._live, _ = record.live()
                self._stamp = stamp

        problem = None
        try:
            await ledger.ask(look)
        except NoLedger:
            self._live, self._stamp = [], None
        except Exception as error:  # every kind: these looks must not end
            problem = str(error)
            if problem != self._ledger_problem:
                logger.error("%s", problem)
        self._ledger_problem = problem

    def show_live(self) -> None:
        """Report the live records that were read last."""
        self._ledger_refused.set(self._ledger_problem is not None)
        together = defaultdict(list)
        for record in self._live:
            together[record.name if len(self._live) <= MOST_SYMBOLS else MANY].append(record)
        for name, records in together.items():
            self._show(name, records)

    def _show(self, name: str, records: Sequence[LiveRecord]) -> None:
        """Report some live records under one label."""
        tags = {"name": name}
        scores: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        inside: dict[float, list[float]] = defaultdict(lambda: [0.0, 0.0])
        alarms: Counter[str] = Counter()
        for record in records:
            for skill in record.skill:
                if skill.horizon == 1:
                    scores[skill.baseline][0] += skill.crps
                    scores[skill.baseline][1] += skill.baseline_crps
            for covered in record.coverage:
                inside[covered.level][0] += covered.coverage * record.sessions
                inside[covered.level][1] += record.sessions
            alarms.update(dict.fromkeys(record.known_alarms, 0))
            alarms.update(event["details"]["alarm"] for event in record.alarms)
        for baseline, (own, other) in scores.items():
            if other:
                self._ratio.set(own / other, tags={**tags, "baseline": baseline})
        for level, (held, sessions) in inside.items():
            self._coverage.set(held / sessions, tags={**tags, "level": f"{level:g}"})
        for alarm, count in alarms.items():
            self._alarm.set(count > 0, tags={**tags, "alarm": alarm})
        self._sessions.set(min(record.sessions for record in records), tags=tags)
        self._age_seconds.set(max(record.latest.age_seconds for record in records), tags=tags)
        ages = [age for record in records if (age := record.latest.age_sessions) is not None]
        if ages:
            self._age_sessions.set(max(ages), tags=tags)

    async def read_forever(self, ledger: LiveLedger) -> None:
        """Look at the ledger every ``LEDGER_EVERY_S`` seconds."""
        while True:
            await self.read(ledger)
            await asyncio.sleep(LEDGER_EVERY_S)

    def publish_recorded(self, outcomes: Counter[str]) -> None:
        """Hand the outcomes of the sample of requests to Ray."""
        for outcome, count in outcomes.items():
            self._recorded.inc(count, tags={"outcome": outcome})

    async def publish_forever(
        self, measurements: Measurements, models: Models, recorder: Recorder | None = None
    ) -> None:
        """Publish every ``PUBLISH_EVERY_S`` seconds, and all states every ``MODELS_EVERY`` times."""
        for turn in itertools.count():
            if turn % MODELS_EVERY == 0:
                self.show_models(models)
                self.show_live()
            await asyncio.sleep(PUBLISH_EVERY_S)
            self.publish(measurements.take())
            if recorder is not None:
                self.publish_recorded(recorder.take())


def label_of(symbol: str, catalog: Catalog) -> str:
    """The label of a symbol: the symbol itself, unless there are too many."""
    return symbol if len(catalog.by_symbol) <= MOST_SYMBOLS else MANY


def short_version(sha256: str) -> str:
    """Shorten a hash; enough is left to tell models apart."""
    return sha256[:12]
