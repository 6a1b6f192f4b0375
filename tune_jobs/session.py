"""The work of one session for the models of one name: fetch, score, renew, judge, promote, forecast.

Each step records its result in one transaction or by one rename. The next run repeats a step that was interrupted.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from forecast.cli.command import spell_options
from forecast.errors import DataError, ForecastError, StoreError, WindowError
from forecast.job_files import PICK_FILE, SCORED_FILE, SUMMARY_FILE
from forecast.live.alarms import OLD, SILENT, Alarm, alarms_on, old, record_alarms, silent
from forecast.live.evidence import Role
from forecast.live.ledger import WATCHED, Event, Settled
from forecast.live.notify import post
from forecast.live.store import CHANGES, Store, Version
from forecast.live.subject import Subject, keep_subject, recorded_subject
from forecast.model.split import MIN_TARGETS
from forecast.prices.panel import panel_from_config
from forecast.prices.series import Dates, Series
from forecast.prices.source import series_from_config
from forecast.prices.timeline import Timeline
from forecast.scores.distribution import MAIN_LEVEL, PROBABILITIES, interval_probabilities
from tune_jobs.console import say
from tune_jobs.update_options import UpdateOptions
from tune_jobs.verdicts import LEAST_PAIRED, Verdict, verdict_of, verdict_of_shadow

if TYPE_CHECKING:
    from forecast.inference.predictor import Predictor
    from forecast.live.issue import Issued

ROUNDING = 1e-9
"""More than the rounding of a probability, and less than the distance of two."""
JOBS = ".jobs"
"""Directory of the running job, next to those of the versions."""
DECISIONS: tuple[Event, ...] = ("promoted", "kept", "shadow", "rolled_back")
"""The events that decide on a version."""
WORDS = {
    "promoted": "is promoted",
    "kept": "is not promoted",
    "shadow": "runs as a shadow",
    "waits": "is not promoted yet",
}
MOST_TESTED = 0.5
"""Largest share of a renewal's sessions that are test rows, even after years without a renewal."""


@dataclass
class Outcome:
    """The result of a run.

    Attributes:
        name: name in the store.
        session: the last known session.
        new_prices: number of new prices.
        corrected: number of corrected prices.
        scored: number of forecasts that were scored.
        added: the version that a job added.
        decision: the decision on a challenger and its reason, in one line.
        published: number of symbols with new published forecasts.
        superseded: number of these symbols whose earlier forecasts from the same session were made from prices that
            were corrected later.
        forecasts: of a single symbol, the published forecasts: ``target``, ``prediction``, and ``lower`` and ``upper``
            bound of the interval of 90 %.
        left_out: the reason, by symbol, for each missing forecast of the model or of a baseline.
        alarms: the alarms that are on.
    """

    name: str
    session: str
    new_prices: int = 0
    corrected: int = 0
    scored: int = 0
    added: str | None = None
    decision: str | None = None
    published: int = 0
    superseded: int = 0
    forecasts: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)

    @property
    def nothing_new(self) -> bool:
        """Whether the run changed nothing."""
        return not (self.new_prices or self.scored or self.added or self.decision or self.published)


class Session:
    """One run for the models of one name; the caller has the store's lock of that name."""

    def __init__(self, options: UpdateOptions) -> None:
        """Use the store that the options name, and its ledger."""
        self.options = options
        self.name = options.store_name
        self.store = Store(options.models)
        self.ledger = self.store.ledger
        self.errors = Console(stderr=True)
        self.console = Console(quiet=options.quiet or options.json_output)
        self.tracking = options.tracking

    def run(self) -> Outcome:
        """Do every step that is due.

        Raises:
            ForecastError: when a step cannot be completed; the earlier steps are recorded.
            OSError: when the store cannot be written; the earlier steps are recorded.
        """
        self.store.complete(self.name)
        try:
            prices, left_out = self._fetch()
        except DataError:
            self._usable_current()
            # Without prices, the age of the model is unknown.
            silence = self._silence_without_prices()
            kept = {OLD} if silence is not None else {OLD, SILENT}
            self._watch([*(silence or []), *self._record_alarms()], None, kept=kept)
            raise
        settled = self._score(prices)
        prices = self._without(prices, settled.others)
        newest = max(prices.values(), key=lambda series: series.dates[-1])
        outcome = Outcome(
            self.name, newest.timeline.text(newest.dates[-1:])[0], left_out=left_out | settled.others
        )
        outcome.new_prices, outcome.corrected = settled.prices, len(settled.corrected)
        outcome.scored = settled.scored
        current = self._usable_current()
        outcome.alarms = self._watch(
            [
                *self._silence(newest.timeline, newest.dates[-1]),
                *self._age(prices, current),
                *self._record_alarms(),
            ],
            outcome.session,
        )
        failed: Exception | None = None
        if why := self._renewal_due(prices, current):
            try:
                outcome.added = self._renew(prices, outcome.session, why).version
            except Exception as error:
                if current is None:
                    raise
                failed = error  # Whatever it is, the current model still forecasts.
        outcome.decision = self._decide(prices, current, outcome.session)
        self._forecast(prices, outcome)
        if self.tracking:
            self.tracking.follow_or_warn(self.store, self.name, self._shadow())
        if failed is not None:
            raise failed
        return outcome

    def _fetch(self) -> tuple[Mapping[str, Series], dict[str, str]]:
        """The prices of the symbols, and the reason for each symbol without prices.

        Raises:
            UsageError: when the name's models forecast something else.
            DataError: when there are no prices.
        """

        def notice(line: str) -> None:
            say(self.errors, spell_options(line), "yellow")

        recorded = recorded_subject(self.ledger, self.name)
        if recorded is not None and self.options.calendar is None:
            # A calendar that was found once is not sought again: later rows may fit another one.
            self._use_calendar(recorded.calendar)
        if not self.options.symbols:
            series = series_from_config(self.options, notify=notice)
            found = {series.symbol: series}
            keep_subject(self.ledger, self.name, Subject.of_prices(found, pooled=False, calendar=None))
            self._use_calendar(series.timeline.calendar_name)
            return found, {}
        panel = panel_from_config(self.options.symbols, self.options, notify=notice)
        subject = Subject.of_prices(panel.series, pooled=True, calendar=self.options.calendar)
        keep_subject(self.ledger, self.name, subject)
        missing = set(self.ledger.published_symbols(self.name)) - panel.series.keys()
        gone = dict.fromkeys(sorted(missing), "the source has no prices of it any more")
        return panel.series, gone | dict(panel.left_out)

    def _use_calendar(self, calendar: str | None) -> None:
        """Let the prices, and a job, have this calendar; None for each symbol's own."""
        if calendar is not None:
            self.options = self.options.model_copy(update={"calendar": calendar})

    def _without(self, prices: Mapping[str, Series], others: Mapping[str, str]) -> Mapping[str, Series]:
        """The prices of the symbols that are not left out.

        Raises:
            DataError: when none is left.
        """
        left = {symbol: series for symbol, series in prices.items() if symbol not in others}
        if not left:
            symbol, why = next(iter(others.items()))
            raise DataError(
                f"{symbol} of {self.name}: {why}; use the `source` of the recorded prices, or another `name` or "
                "`models`"
            )
        return left

    def _score(self, prices: Mapping[str, Series]) -> Settled:
        """Record the prices since the last run, and score the forecasts whose prices have arrived."""
        last = self.ledger.last_prices(self.name, list(prices))
        found = {}
        for symbol, series in prices.items():
            known = len(series)
            if symbol in last:
                known = int(np.searchsorted(series.dates, series.timeline.parse(last[symbol]), side="right"))
            first = max(0, known - WATCHED)
            found[symbol] = series.timeline.text(series.dates[first:]), series.values[first:]
        return self.ledger.settle(self.name, found)

    def _usable_current(self) -> Version | None:
        """The current version; if its files have changed, the current version after a rollback, None if that fails."""
        current = self.store.current(self.name)
        if current is None or (damage := self.store.damage(current)) is None:
            return current
        try:
            earlier = self.store.rollback(self.name, {"why": damage})
        except StoreError:
            line = f"{damage}, and no earlier version can take its place; restore the file from a copy"
            say(self.errors, f"warning: {line}, or let a job train another version", "yellow")
            return None
        say(self.errors, f"warning: {damage}; the earlier version {earlier} takes its place", "yellow")
        return self.store.current(self.name)

    def _silence(self, timeline: Timeline, last: np.datetime64) -> list[Alarm]:
        """The alarm of a source without new prices, if it is on."""
        now = np.datetime64(dt.datetime.now(dt.UTC).replace(tzinfo=None), "s")
        session = timeline.last_complete_session(now)
        missing = None if session is None else timeline.sessions_between(last, session)
        return silent(missing, self.options.max_silence)

    def _silence_without_prices(self) -> list[Alarm] | None:
        """The same alarm when the source does not answer; None if the ledger has no calendar yet."""
        timeline = Timeline.of(self.ledger.last_timeline(self.name))
        last = self.ledger.last_session(self.name)
        return self._silence(timeline, timeline.parse(last)) if timeline and last else None

    def _age(self, prices: Mapping[str, Series], current: Version | None) -> list[Alarm]:
        """The alarm of a model that is too old, if it is on."""
        if current is None:
            return []
        return old(_sessions_after(prices, current.trained_until), self.options.most_age)

    def _record_alarms(self) -> list[Alarm]:
        """The alarms of the current model's record since it was promoted."""
        current = self.store.current(self.name)
        changes = self.ledger.events(self.name, *CHANGES, limit=1)
        if current is None or not changes:
            return []
        rows = self.ledger.sessions(self.name, since=changes[0]["session"] or "", horizon=1)
        return record_alarms([row for row in rows if row["model"] == current.sha256])

    def _watch(self, found: list[Alarm], session: str | None, kept: Collection[str] = ()) -> list[str]:
        """Record the alarms that begin and end, and post those that begin; return those that are on.

        Args:
            found: the alarms that are on.
            session: the last known session.
            kept: names of alarms that are not over, although they were not found.
        """
        now = {alarm.alarm: alarm for alarm in found}
        on = alarms_on(self.ledger, self.name)
        for kind in sorted(on.keys() - now.keys() - set(kept)):
            began = {key: on[kind][key] for key in ("id", "at", "session")}
            details = {"alarm": kind, "began": began | {"text": on[kind]["details"].get("text")}}
            self.ledger.add_event(self.name, "alarm_over", session=session, details=details)
            since = began["session"] or began["at"][:10]
            say(self.errors, f"alarm over: {kind}, which was on since {since}", "green")
        for kind in sorted(now.keys() - on.keys()):
            self.ledger.add_event(self.name, "alarm", session=session, details=asdict(now[kind]))
            say(self.errors, f"alarm: {now[kind].text}", "red")
        self._post()
        return sorted(now)

    def _post(self) -> None:
        """Post every alarm that was not posted yet, even if it is over by now.

        At the first use of the option, alarms that are over are passed over.
        """
        if not self.options.notify:
            return
        notified = self.ledger.events(self.name, "notified")
        alarms = self.ledger.events(self.name, "alarm")
        if not notified:
            on = {event["id"] for event in alarms_on(self.ledger, self.name).values()}
            over = [event["id"] for event in alarms if event["id"] not in on]
            self.ledger.add_event(self.name, "notified", details={"passed_over": over})
            notified = self.ledger.events(self.name, "notified")
        posted = {id_ for event in notified for id_ in event["details"].get("passed_over", ())}
        posted |= {event["details"].get("event") for event in notified}
        for event in reversed(alarms):
            if event["id"] in posted:
                continue
            problem = post(self.options.notify, event)
            if problem is not None:
                say(self.errors, f"warning: {problem}", "yellow")
                return
            self.ledger.add_event(self.name, "notified", details={"event": event["id"]})

    def _renewal_due(self, prices: Mapping[str, Series], current: Version | None) -> str | None:
        """The reason why a job is due, in one line; None if no job is due."""
        if current is None:
            # After a job that was killed before its version was promoted, there is one.
            newest = self.store.newest(self.name)
            if newest is None:
                return "there is no model yet"
            damage = self.store.damage(newest)
            return damage and f"no version can be used: {damage}"
        # An older version may have been added by hand after the newest one.
        since = min(_sessions_after(prices, each.trained_until) for each in self.store.versions(self.name))
        if since >= self.options.retune_every:
            return f"the newest version is {since} sessions old"
        added = self.ledger.events(self.name, "added", limit=1)[0]["id"]
        asked = [
            kind
            for kind, event in alarms_on(self.ledger, self.name).items()
            if event["details"]["renew"] and event["id"] > added
        ]
        return f"alarms ask for it ({', '.join(sorted(asked))})" if asked and since >= LEAST_PAIRED else None

    def _renew(self, prices: Mapping[str, Series], session: str, why: str) -> Version:
        """Run a job on all prices, with a warm start from the newest version, and add its pick as a version.

        Its test rows are the sessions since the current version was trained, which neither scored model has seen.
        """
        # Imported here because most sessions train nothing.
        from forecast.live.judge import seen_until
        from forecast.model.checkpoint import load_checkpoint
        from tune_jobs.job import run_job

        jobs = self.store.directory(self.name) / JOBS
        digest = hashlib.sha256(" ".join(each.provenance.sha256 for each in prices.values()).encode())
        output = jobs / f"{session.replace(':', '')}-{digest.hexdigest()[:8]}"
        for other in jobs.glob("*"):
            if other != output:  # of other prices, with which a study cannot be continued
                shutil.rmtree(other)
        say(self.console, f"A tuning job starts: {why}")
        share, earlier = None, None
        if (current := self.store.current(self.name)) is not None:
            last = self.store.versions(self.name)[-1]
            if SUMMARY_FILE in last.files and self.store.damage(last) is None:
                earlier = self.store.path(self.name, last.version)
            # Each of many symbols has fewer rows than there are sessions, and all must have enough.
            least = MIN_TARGETS if len(prices) == 1 else 2 * MIN_TARGETS
            tested = max(_sessions_after(prices, current.trained_until), least)
            # A half keeps rounding from moving the border.
            share = min((tested - 0.5) / len(_sessions_of(prices)), MOST_TESTED)
        outcome = run_job(self.options.job(output, share, earlier))
        if outcome.interrupted:
            raise KeyboardInterrupt
        logged = self.tracking is None or self.tracking.log_or_warn(self.name, output, self.console)
        served = load_checkpoint(output / PICK_FILE)
        version = self.store.add(self.name, output, seen_until(served) or session)
        if logged:
            shutil.rmtree(jobs)
        return version

    def _decide(self, prices: Mapping[str, Series], current: Version | None, session: str) -> str | None:
        """Decide on the newest version, or on the running shadow; return the decision and its reason in one line."""
        *others, newest = self.store.versions(self.name)
        if current is None:
            if not others:
                why = "there is no other version"
            elif all(map(self.store.damage, others)):
                why = "no other version can be used"
            else:
                why = "there is no current version that can be used, and this one was added last"
            self.store.promote(self.name, newest.version, details={"why": why})
            return f"{newest.version} is promoted: {why}"
        if (shadow := self._shadow()) is not None:
            if damage := self.store.damage(shadow):
                return self._conclude(shadow.version, current, Verdict("kept", damage, {}), session)
            (began,) = self.ledger.events(self.name, "shadow", limit=1)
            rows = self.ledger.sessions(self.name, since=began["session"] or "", horizon=1)
            verdict_now = verdict_of_shadow(
                [row for row in rows if row["model"] == shadow.sha256],
                [row for row in rows if row["model"] == current.sha256],
                self.options.shadow_sessions,
            )
            return self._conclude(shadow.version, current, verdict_now, session) if verdict_now else None
        judged = {event["version"] for event in self.ledger.events(self.name, *DECISIONS)}
        waited = self.ledger.events(self.name, "waits", limit=1)
        if waited and (waited[0]["version"], waited[0]["session"]) == (newest.version, session):
            return None
        if newest.version == current.version or newest.version in judged or SCORED_FILE not in newest.files:
            return None
        if damage := self.store.damage(newest):
            return self._conclude(newest.version, current, Verdict("kept", damage, {}), session)
        return self._conclude(newest.version, current, self._verdict(prices, newest, current), session)

    def _verdict(self, prices: Mapping[str, Series], newest: Version, current: Version) -> Verdict:
        """Judge a new version, as it was scored, on sessions that neither it nor the current version has seen."""
        from forecast.live.judge import judge
        from forecast.model.checkpoint import load_checkpoint

        champion = load_checkpoint(self.store.checkpoint(self.name, current.version))
        scored = load_checkpoint(self.store.path(self.name, newest.version) / SCORED_FILE)
        return verdict_of(
            judge(champion, scored, prices, current.trained_until), self.options.shadow_sessions
        )

    def _conclude(self, version: str, current: Version, verdict: Verdict, session: str) -> str:
        """Record a verdict and act on it."""
        details = {**verdict.figures, "why": verdict.why, "against": current.version}
        if verdict.decision == "promoted":
            self.store.promote(self.name, version, details=details)
        else:
            self.ledger.add_event(
                self.name, verdict.decision, version=version, session=session, details=details
            )
        return f"{version} {WORDS[verdict.decision]}: {verdict.why}"

    def _forecast(self, prices: Mapping[str, Series], outcome: Outcome) -> None:
        """Publish the next forecasts, and record those of a shadow and of the baselines with them.

        Forecasts are also due where prices up to their origin were corrected after they were published.

        Raises:
            ForecastError: when the current version makes no forecasts; those of the others are recorded.
        """
        current = self.store.current(self.name)
        assert current is not None
        known = self.ledger.origins(self.name, current.sha256)
        ends = {symbol: series.timeline.text(series.dates[-1:])[0] for symbol, series in prices.items()}
        again = {
            symbol
            for symbol in self.ledger.outdated(self.name) & ends.keys()
            if ends[symbol] == known.get(symbol)
        }
        due = {
            symbol: series
            for symbol, series in prices.items()
            if symbol in again
            or symbol not in known
            or series.dates[-1] > series.timeline.parse(known[symbol])
        }
        if not due:
            return
        from forecast.inference.predictor import Predictor
        from forecast.live.issue import issue_baselines, issue_model

        horizons = self.options.horizons
        baselines, problems = issue_baselines(due, horizons)
        outcome.left_out |= problems
        roles: dict[Role, list[Issued]] = {"baseline": baselines}
        running: dict[Role, Version | None] = {"champion": current, "shadow": self._shadow()}
        failed: ForecastError | None = None
        for role, version in running.items():
            if version is None:
                continue
            try:
                predictor = Predictor(self.store.checkpoint(self.name, version.version), device="cpu")
                possible = self._possible(predictor, version)
                # A model that sees the market needs all symbols, not only those whose forecast is due.
                issued, problems = issue_model(predictor, prices, possible, version.sha256)
            except ForecastError as error:
                if role == "champion":
                    failed = error
                else:
                    line = f"warning: the shadow {version.version} makes no forecasts: {error}"
                    say(self.errors, line, "yellow")
                continue
            roles[role] = [each for each in issued if each.symbol in due]
            if role == "champion":
                outcome.left_out |= {symbol: why for symbol, why in problems.items() if symbol in due}
        self.ledger.issue(self.name, roles)
        if failed is not None:
            raise failed
        symbols = {each.symbol for each in roles["champion"]}
        outcome.published, outcome.superseded = len(symbols), len(symbols & again)
        if len(symbols) == 1:
            outcome.forecasts = [_described(each) for each in roles["champion"]]

    def _possible(self, predictor: Predictor, version: Version) -> list[int]:
        """The numbers of steps that a version can forecast; a line names the others."""
        possible, refused = [], {}
        for horizon in self.options.horizons:
            try:
                predictor.require_horizon(horizon)
                possible.append(horizon)
            except WindowError as error:
                refused[horizon] = str(error)
        if refused:
            steps = ", ".join(map(str, refused))
            line = f"warning: {version.version} makes no forecasts of {steps} steps: {next(iter(refused.values()))}"
            say(self.errors, line, "yellow")
        return possible

    def _shadow(self) -> Version | None:
        """The version that runs as a shadow."""
        last = self.ledger.events(self.name, *DECISIONS, limit=1)
        return (
            self.store.version(self.name, last[0]["version"])
            if last and last[0]["kind"] == "shadow"
            else None
        )


def _sessions_of(prices: Mapping[str, Series]) -> Dates:
    """The dates or times for which at least one symbol has a row."""
    return np.unique(np.concatenate([series.dates for series in prices.values()]))


def _described(issued: Issued) -> dict[str, Any]:
    """A forecast with its interval of ``MAIN_LEVEL``."""
    lower, upper = issued.quantiles[
        np.searchsorted(PROBABILITIES, interval_probabilities([MAIN_LEVEL]) - ROUNDING)
    ]
    return {
        "target": issued.target,
        "prediction": issued.prediction,
        "lower": float(lower),
        "upper": float(upper),
    }


def _sessions_after(prices: Mapping[str, Series], date: str) -> int:
    """The number of sessions after a date or time, ISO 8601."""
    timeline = next(iter(prices.values())).timeline
    return int((_sessions_of(prices) > timeline.parse(date)).sum())
