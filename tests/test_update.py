"""The session's update: each step once, whatever comes in between."""

import datetime as dt
import http.server
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest

import tune_jobs.job
from benchmarks import updates
from forecast.atomic import write_json
from forecast.config import TrainConfig, parse_settings
from forecast.errors import StudyError, WindowError
from forecast.job_files import PICK_FILE, SCORED_FILE, SUMMARY_FILE
from forecast.live.issue import issue_model
from forecast.live.judge import Judgement
from forecast.live.notify import post
from forecast.live.store import Store
from forecast.model.checkpoint import load_checkpoint, save_checkpoint
from forecast.model.panel import prepare_panel
from forecast.model.split import service_split
from forecast.model.training import fit, scored_on_test
from forecast.model.windows import prepare
from forecast.prices.panel import Panel, load_panel
from forecast.prices.source import load_series
from tune_jobs import models, update
from tune_jobs.job import Outcome
from tune_jobs.session import Session
from tune_jobs.update_options import UpdateOptions
from tune_jobs.verdicts import Verdict, verdict_of

ROWS = 400
FIRST = dt.date(2020, 1, 1)
DATES = np.arange(FIRST, FIRST + dt.timedelta(days=ROWS), dtype="datetime64[D]")
TINY = {"sequence_length": 10, "hidden_size": 4, "max_epochs": 1, "members": 1}


def walk(seed=0):
    generator = np.random.default_rng(seed)
    return 100 * np.exp(np.cumsum(0.01 * generator.standard_t(5, ROWS)))


def train_without_a_cluster(options, _cluster=None):
    """Stands in for a tuning job: the same files, of one tiny model."""
    given = {"source": options.source, "calendar": "24/7", "notify": None}
    prices = load_panel(options.symbols, **given) if options.symbols else load_series(options.symbol, **given)
    config = TrainConfig(**TINY, source=options.source, symbol=prices.symbol, train_ratio=options.train_ratio)
    if isinstance(prices, Panel):
        prepared = prepare_panel(prices, config, 10)
        later = prepare_panel(prices, config, 10, lambda rows: service_split(rows, 0.85))
    else:
        prepared = prepare(prices, config)
        later = prepare(prices, config, service_split(len(prices), 0.85))
    scored, _ = scored_on_test(fit(prepared, config, prices.provenance).checkpoint, prepared)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    save_checkpoint(scored, options.output_dir / SCORED_FILE)
    save_checkpoint(fit(later, config, prices.provenance).checkpoint, options.output_dir / PICK_FILE)
    (options.output_dir / SUMMARY_FILE).write_text("{}")
    return Outcome({}, interrupted=False)


def use_quick_jobs():
    """Let updates in this process train without a cluster."""
    tune_jobs.job.run_job = train_without_a_cluster


def kill_in_a_job():
    """Kill this process in a job that has written a part of its files."""

    def run_job(options, _cluster=None):
        train_without_a_cluster(options)
        (options.output_dir / SUMMARY_FILE).unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    tune_jobs.job.run_job = run_job


class Loop:
    """A store, a growing file of prices, and the command."""

    def __init__(self, directory, values):
        self.directory, self.values = directory, values
        self.path, self.models = directory / "prices.csv", directory / "models"
        self.store = Store(self.models)

    def write(self, rows, changed=None):
        content = {name: values[:rows].copy() for name, values in self.values.items()}
        for name, row, value in changed or []:
            content[name][row] = value
        frame = pd.DataFrame({"Date": DATES[:rows], **content})
        if len(content) > 1:
            frame = frame.melt("Date", var_name="Symbol", value_name="Close").dropna()
        else:
            frame = frame.set_axis(["Date", "Close"], axis=1)
        frame.to_csv(self.path, index=False)

    def argv(self, *more):
        one = ["--symbol", next(iter(self.values))] if len(self.values) == 1 else ["--symbols", "all"]
        return ["--source", str(self.path), "--models", str(self.models), "--calendar", "24/7", *one, *more]

    def run(self, rows, *more, changed=None):
        self.write(rows, changed)
        return update.main(self.argv(*more))

    def copy(self, directory):
        """A loop of its own, with the same values, that goes on from here."""
        other = Loop(directory, {name: values.copy() for name, values in self.values.items()})
        shutil.copytree(self.models, other.models, symlinks=True)
        other.write(300)
        return other

    def table(self, query):
        with sqlite3.connect(self.models / "ledger.db") as connection:
            return connection.execute(query).fetchall()

    def facts(self):
        """What must not depend on what was killed on the way: forecasts, scores, and what is served."""
        forecasts = self.table(
            "SELECT symbol, target, horizon, role, prediction FROM forecasts ORDER BY 1, 2, 3, 4, 5"
        )
        scores = self.table(
            "SELECT realized, crps FROM scores JOIN forecasts f ON f.id = forecast_id ORDER BY 1, 2"
        )
        return forecasts, scores, [self.store.current(name).trained_until for name in self.store.names()]


class Killed(BaseException):
    """Ends a run where it is, as a signal does."""


def _killed(*_):
    raise Killed


@pytest.fixture(autouse=True)
def _quick_jobs(monkeypatch):
    monkeypatch.setattr("tune_jobs.job.run_job", train_without_a_cluster)


def begun(directory, values):
    """A loop after its first update, of 300 rows, without an alarm."""
    loop = Loop(directory, values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune_jobs.job.run_job", train_without_a_cluster)
        assert loop.run(300, *NO_SILENCE) == 0
    return loop


NO_SILENCE = ("--max-silence", "100000")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return begun(tmp_path_factory.mktemp("first"), {"WALK": walk()})


@pytest.fixture(scope="module")
def first_of_many(tmp_path_factory):
    values = {name: walk(seed) for seed, name in enumerate(("AAA", "BBB", "CCC"))}
    return begun(tmp_path_factory.mktemp("many"), values)


@pytest.fixture
def new(tmp_path):
    """A loop before its first update."""
    return Loop(tmp_path, {"WALK": walk()})


@pytest.fixture
def loop(first, tmp_path):
    """A loop after its first update, of 300 rows."""
    return first.copy(tmp_path)


@pytest.fixture
def many(first_of_many, tmp_path):
    """The same of three symbols."""
    return first_of_many.copy(tmp_path)


def test_the_first_update_makes_a_model_and_publishes_the_next_sessions(new, capsys):
    assert new.run(300) == 0
    published = new.store.ledger.published("WALK")
    assert [row["target"] for row in published] == [str(DATES[299 + h]) for h in (1, 5, 20)]
    assert new.table("SELECT DISTINCT model FROM forecasts WHERE role = 'baseline' ORDER BY 1") == [
        ("EWMA",),
        ("GARCH",),
        ("persistence",),
    ]
    assert "published forecasts of 1 symbol" in capsys.readouterr().out


def test_a_second_update_of_a_session_changes_nothing_and_says_so(loop, capsys):
    before = loop.facts()
    assert loop.run(300) == 0
    assert capsys.readouterr().out == f"WALK: nothing new since {DATES[299]}\n"
    assert loop.facts() == before


def test_an_update_with_nothing_new_or_a_missing_source_does_not_load_torch(loop):
    script = (
        "import sys\nfrom pathlib import Path\nfrom tune_jobs import update\n"
        "codes = [update.run(update.main, sys.argv[1:])]\n"
        f"Path({str(loop.path)!r}).unlink()\n"
        "codes.append(update.run(update.main, sys.argv[1:]))\n"
        "codes.append(update.run(update.main, [*sys.argv[1:], '--name', 'NEW']))\n"
        "assert codes == [0, 1, 1] and 'torch' not in sys.modules, codes\n"
    )
    command = [sys.executable, "-c", script, *loop.argv()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr.count(f"error: no file at {loop.path}; check the path given as --source") == 2
    # The source is also an alarm of the models that there are.
    assert {event["details"]["alarm"] for event in loop.store.ledger.events("WALK", "alarm")} == {
        "source_silent"
    }


def test_forecasts_are_scored_when_their_price_comes_also_after_weeks(loop):
    loop.run(301)
    assert loop.table("SELECT COUNT(*) FROM scores") == [(4,)]
    loop.run(319)
    # Of both origins: one and five steps; of twenty none.
    assert loop.table("SELECT COUNT(*) FROM scores") == [(16,)]
    assert loop.table("SELECT COUNT(DISTINCT origin) FROM forecasts") == [(3,)]


def test_a_renewal_is_judged_on_the_sessions_that_neither_model_was_trained_on(loop):
    first = loop.store.current("WALK")
    for rows in (310, 329, 330):
        loop.run(rows, "--retune-every", "30")
    versions = loop.store.versions("WALK")
    assert len(versions) == 2
    assert versions[1].trained_until == str(DATES[329])
    (event,) = [
        each
        for each in loop.store.ledger.events("WALK", "promoted", "kept")
        if each["version"] == versions[1].version
    ]
    assert event["details"]["sessions"] == 30
    assert event["details"]["first"] == str(DATES[300])
    better = event["details"]["challenger"] <= event["details"]["champion"]
    assert (loop.store.current("WALK").version == first.version) is not better
    assert loop.store.damage(first) is None


def facts_after_a_renewal(loop):
    """The facts after updates of a session with a renewal and of the next one."""
    for rows in (330, 331):
        assert loop.run(rows, *RENEWAL) == 0
    assert len(loop.store.versions("WALK")) == 2
    return loop.facts()


RENEWAL = ("--retune-every", "30", *NO_SILENCE)
KILLS = {**updates.KILLS, **updates.RENEWAL_KILLS, "killed in renewal": kill_in_a_job}


@pytest.fixture(scope="module")
def never_killed(first, tmp_path_factory):
    """The facts of updates that nobody kills."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune_jobs.job.run_job", train_without_a_cluster)
        return facts_after_a_renewal(first.copy(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("fault", KILLS)
def test_an_update_that_is_killed_at_any_step_is_completed_by_the_next_one(loop, fault, never_killed):
    loop.write(330)
    now = dt.datetime.now(dt.UTC)
    killed = updates.updated(loop.argv(*RENEWAL), now, use_quick_jobs, KILLS[fault])
    assert killed.code == -signal.SIGKILL, killed.output
    assert facts_after_a_renewal(loop) == never_killed


def test_a_second_update_at_the_same_time_says_who_has_the_lock(loop, capsys):
    with loop.store.lock("WALK"):
        assert update.run(update.main, loop.argv()) == 1
    assert "is working on WALK" in capsys.readouterr().err


def test_a_source_that_is_down_costs_nothing_and_the_next_update_goes_on(loop, capsys):
    before = loop.facts()
    loop.path.unlink()
    assert update.run(update.main, loop.argv()) == 1
    assert len(capsys.readouterr().err.splitlines()) <= 3
    assert loop.facts() == before
    assert loop.run(301) == 0


def test_a_corrected_price_gets_new_scores_beside_the_old_ones(loop):
    loop.run(301, changed=[("WALK", 300, 120.0)])
    assert loop.run(302) == 0
    realized = loop.table(
        "SELECT DISTINCT realized FROM scores JOIN forecasts f ON f.id = forecast_id "
        f"WHERE target = '{DATES[300]}' ORDER BY scores.id"
    )
    assert [value for (value,) in realized] == pytest.approx([120.0, loop.values["WALK"][300]])


def test_a_corrected_price_gets_new_forecasts_beside_the_old_ones(loop, capsys):
    wrong, right = 120.0, loop.values["WALK"][300]
    loop.run(301, changed=[("WALK", 300, wrong)])
    before = [row["prediction"] for row in loop.store.ledger.published("WALK")]
    capsys.readouterr()
    assert loop.run(301) == 0
    said = capsys.readouterr().out
    assert "prices: 0 new, 1 corrected" in said
    assert "published forecasts of 1 symbol, 1 again from corrected prices" in said
    published = loop.store.ledger.published("WALK")
    assert {(row["origin"], row["last_price"]) for row in published} == {(str(DATES[300]), right)}
    assert [row["prediction"] for row in published] != before
    assert loop.table(
        f"SELECT DISTINCT last_price, revision FROM forecasts WHERE origin = '{DATES[300]}' ORDER BY 2"
    ) == [(wrong, 0), (right, 1)]
    assert loop.run(301) == 0
    assert capsys.readouterr().out == f"WALK: nothing new since {DATES[300]}\n"
    # Both are scored; the record of the session counts the last one.
    loop.run(302)
    scored = "SELECT COUNT(*) FROM scores JOIN forecasts f ON f.id = forecast_id WHERE origin = "
    assert loop.table(f"{scored}'{DATES[300]}'") == [(8,)]
    assert loop.store.ledger.settled("WALK", "WALK", 1)[0]["last_price"] == right


def test_an_update_killed_between_a_correction_and_its_forecasts_is_completed(loop, monkeypatch):
    loop.run(301, changed=[("WALK", 300, 120.0)])
    monkeypatch.setattr("tune_jobs.session.Session._forecast", _killed)
    with pytest.raises(Killed):
        loop.run(301)
    monkeypatch.undo()
    loop.run(301)
    assert {row["last_price"] for row in loop.store.ledger.published("WALK")} == {loop.values["WALK"][300]}


@pytest.mark.parametrize(
    ("options", "kept", "given"),
    [
        (["--feature", "Open"], "--feature Close", "Open"),
        (["--interval", "1wk"], "--interval 1d", "1wk"),
        (["--calendar", "24/5"], "--calendar 24/7", "24/5"),
        (["--symbol", "OTHER", "--name", "WALK"], "--symbol WALK", "OTHER"),
        (["--symbols", "all", "--name", "WALK"], "--symbol WALK", "many symbols"),
    ],
)
def test_a_name_keeps_what_its_models_forecast(loop, capsys, options, kept, given):
    before = loop.facts()
    weekly = np.arange(6, 301, 7) if "1wk" in options else np.arange(301)
    frame = pd.DataFrame({"Date": DATES[weekly], "Close": loop.values["WALK"][weekly]})
    frame.assign(Open=frame["Close"] + 1).to_csv(loop.path, index=False)
    if "--symbols" in options:
        frame.assign(Symbol="WALK").to_csv(loop.path, index=False)
    argv = [each for each in loop.argv() if not ("--symbols" in options and each in ("--symbol", "WALK"))]
    assert update.run(update.main, [*argv, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"and not {given}; give {kept}, or another --name or --models" in line
    assert loop.facts() == before


def test_a_calendar_that_was_found_once_is_not_sought_again(loop):
    options = parse_settings(
        UpdateOptions, {"source": str(loop.path), "symbol": "WALK", "models": loop.models}
    )
    session = Session(options)
    session._fetch()
    assert session.options.calendar == "24/7"


def test_prices_in_another_currency_are_refused(loop, capsys):
    before = loop.facts()
    rate = np.exp(np.cumsum(np.random.default_rng(5).normal(0, 0.005, ROWS)))
    loop.values["WALK"] *= rate
    loop.write(301)
    assert update.run(update.main, loop.argv()) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "changes of its prices differ from the recorded ones" in line
    assert "use the --source of the recorded prices, or another --name or --models" in line
    assert loop.facts() == before


def test_a_version_that_cannot_forecast_all_steps_forecasts_those_that_it_can(loop, monkeypatch, capsys):
    def one_step(self, horizon):
        if horizon > 1:
            raise WindowError(f"a horizon of {horizon} would need forecasts of Volume too")

    monkeypatch.setattr("forecast.inference.predictor.Predictor.require_horizon", one_step)
    assert loop.run(301) == 0
    version = loop.store.current("WALK").version
    assert f"warning: {version} makes no forecasts of 5, 20 steps: a horizon of 5" in capsys.readouterr().err
    assert [row["horizon"] for row in loop.store.ledger.published("WALK")] == [1]
    assert loop.table(
        f"SELECT COUNT(*) FROM forecasts WHERE origin = '{DATES[300]}' AND role = 'baseline'"
    ) == [(9,)]


def test_a_shadow_that_makes_no_forecasts_costs_only_itself(loop, monkeypatch, capsys):
    shadow = add_by_hand(loop, 303)
    loop.store.ledger.add_event("WALK", "shadow", version=shadow, session=str(DATES[302]))
    sha256 = loop.store.version("WALK", shadow).sha256
    issue = issue_model

    def refuse(predictor, prices, horizons, model):
        if model == sha256:
            raise WindowError("its windows are too short")
        return issue(predictor, prices, horizons, model)

    monkeypatch.setattr("forecast.live.issue.issue_model", refuse)
    assert loop.run(303, "--shadow-sessions", "5") == 0
    assert f"the shadow {shadow} makes no forecasts: its windows are too short" in capsys.readouterr().err
    assert loop.store.ledger.published("WALK")[0]["origin"] == str(DATES[302])


def test_a_challenger_without_sessions_to_compare_waits_for_them(loop, capsys):
    first, added = loop.store.current("WALK").version, add_by_hand(loop, 301)
    for rows in (301, 301, 304):
        loop.run(rows, "--retune-every", "100")
        assert loop.store.current("WALK").version == first
    waited = loop.store.ledger.events("WALK", "waits")
    assert [(each["version"], each["session"]) for each in waited] == [
        (added, str(DATES[303])),
        (added, str(DATES[300])),
    ]
    expected = "4 sessions are new to both versions so far, and a judgement needs 5"
    assert waited[0]["details"]["why"] == expected
    assert f"{added} is not promoted yet: {expected}" in capsys.readouterr().out
    loop.run(305, "--retune-every", "100")
    (event,) = loop.store.ledger.events("WALK", "promoted", "kept", limit=1)
    assert (event["version"], event["details"]["sessions"]) == (added, 5)


def test_a_job_of_an_update_shows_its_progress_on_a_terminal_alone(monkeypatch, tmp_path):
    for terminal, given, quiet in ((True, {}, False), (False, {}, True), (True, {"quiet": True}, True),
                                   (True, {"json": True}, True)):  # fmt: skip
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        assert parse_settings(UpdateOptions, given).job(tmp_path, None, None).quiet is quiet


def test_a_damaged_model_is_replaced_by_the_version_before_it(loop, capsys):
    first = loop.store.current("WALK").version
    loop.run(330, "--retune-every", "30")
    second = loop.store.versions("WALK")[1].version
    if loop.store.current("WALK").version == first:
        loop.store.promote("WALK", second)
    damaged = loop.store.checkpoint("WALK", second)
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert loop.run(331, "--retune-every", "30") == 0
    assert loop.store.current("WALK").version == first
    said = capsys.readouterr().err
    assert f"has changed since it was added; the earlier version {first} takes its place" in said


def test_a_damaged_model_without_another_version_is_named_with_a_remedy_and_trained_again(loop, capsys):
    only = loop.store.current("WALK").version
    damaged = loop.store.checkpoint("WALK", only)
    damaged.chmod(0o644)
    damaged.write_bytes(b"")
    assert loop.run(301) == 0
    assert loop.store.damage(loop.store.current("WALK")) is None
    said = capsys.readouterr()
    assert f"{damaged} has changed since it was added, and no earlier version can take its place" in said.err
    assert "restore the file from a copy, or let a job train another version" in said.err
    assert f"A tuning job starts: no version can be used: {damaged} has changed" in said.out
    assert "there is no model yet" not in said.out


def test_a_broken_symbol_of_a_universe_costs_only_itself(many, capsys):
    loop, values = many, many.values
    values["BBB"][290:] = np.nan
    assert loop.run(301) == 0
    origins = {row["symbol"]: row["origin"] for row in loop.store.ledger.published()}
    assert origins == {"AAA": str(DATES[300]), "BBB": str(DATES[299]), "CCC": str(DATES[300])}
    values["BBB"][250:] = np.nan
    assert loop.run(302) == 0
    values["BBB"][:] = np.nan
    capsys.readouterr()
    assert loop.run(303) == 0
    assert "left out: BBB: the source has no prices of it any more" in capsys.readouterr().out


def test_a_name_that_is_no_file_name_is_a_name_of_the_store(tmp_path, capsys):
    loop = Loop(tmp_path, {"^WALK": walk()})
    assert loop.run(300) == 0
    assert [row["symbol"] for row in loop.store.ledger.published("^WALK")] == ["^WALK"] * 3
    assert f"    {DATES[300]}: " in capsys.readouterr().out


def test_a_shadow_is_recorded_and_answers_nobody_until_it_has_run_long_enough(loop, monkeypatch):
    on_paper = Verdict("shadow", "better, but not proved so", {})
    monkeypatch.setattr("tune_jobs.session.verdict_of", lambda *_: on_paper)
    options = ("--retune-every", "30", "--shadow-sessions", "5")
    first = loop.store.current("WALK").version
    loop.run(330, *options)
    for rows in range(331, 335):
        loop.run(rows, *options)
        assert loop.store.current("WALK").version == first
        assert {row["model"] for row in loop.store.ledger.published("WALK")} == {
            loop.store.current("WALK").sha256
        }
    loop.run(335, *options)
    (event,) = loop.store.ledger.events("WALK", "kept", "promoted", limit=1)
    assert event["details"]["sessions"] == 5
    assert loop.table("SELECT COUNT(*) FROM forecasts WHERE role = 'shadow' AND horizon = 1") == [(5,)]


def test_an_alarm_is_posted_once_also_if_the_webhook_was_down(loop):
    posted = []

    class Webhook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Webhook) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/hook"
        options = ("--retune-every", "100", "--max-age", "3", "--max-silence", "100000", "--notify")
        loop.run(305, *options, "http://127.0.0.1:9/closed")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        loop.run(306, *options, address)
        loop.run(307, *options, address)
        server.shutdown()
    assert [(each["name"], each["details"]["alarm"]) for each in posted] == [("WALK", "model_old")]


def test_the_first_webhook_gets_the_alarms_that_are_on_and_none_that_are_over(loop, capsys, monkeypatch):
    posted = []
    monkeypatch.setattr(
        "tune_jobs.session.post", lambda _url, event: posted.append(event["details"]["alarm"])
    )
    options = ("--retune-every", "100", "--max-age")
    loop.run(301, *options, "3", "--max-silence", "0")
    loop.run(304, *options, "3", *NO_SILENCE)
    said = capsys.readouterr().err
    assert f"alarm over: source_silent, which was on since {DATES[300]}" in said
    (over,) = loop.store.ledger.events("WALK", "alarm_over")
    assert over["details"]["began"]["session"] == str(DATES[300])
    assert "the source has no prices of the last" in over["details"]["began"]["text"]
    hook = ("--notify", "http://127.0.0.1:9/hook")
    loop.run(305, *options, "3", *NO_SILENCE, *hook)
    assert posted == ["model_old"]
    # From then on, every alarm is posted, even one that is over by the time.
    loop.run(306, *options, "3", "--max-silence", "0")
    loop.run(307, *options, "3", *NO_SILENCE)
    loop.run(308, *options, "3", *NO_SILENCE, *hook)
    assert posted == ["model_old", "source_silent"]


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9/secret", "http://127.0.0.1:port/secret", "http://[::1/secret", "http://?secret"],
)
def test_a_webhook_that_cannot_be_used_is_a_line_without_its_secret(address):
    problem = post(address, {})
    assert "`notify`" in problem
    assert "secret" not in problem


def test_an_alarm_asks_for_a_renewal_before_its_time(loop):
    loop.run(309, "--retune-every", "100", "--max-age", "7")
    assert len(loop.store.versions("WALK")) == 2


def test_an_update_that_is_killed_after_the_first_job_does_not_run_it_again(new, monkeypatch):
    monkeypatch.setattr("tune_jobs.session.Session._decide", _killed)
    with pytest.raises(Killed):
        new.run(300)
    monkeypatch.undo()
    monkeypatch.setattr("tune_jobs.job.run_job", _killed)
    assert new.run(300) == 0
    assert len(new.store.ledger.published("WALK")) == 3


def test_a_renewal_that_fails_costs_no_forecast(loop, monkeypatch, capsys):
    def fail(*_):
        raise StudyError("no trial finished")

    monkeypatch.setattr("tune_jobs.job.run_job", fail)
    loop.write(330)
    assert update.run(update.main, loop.argv("--retune-every", "30")) == 1
    assert "no trial finished" in capsys.readouterr().err
    assert {row["origin"] for row in loop.store.ledger.published("WALK")} == {str(DATES[329])}


def add_by_hand(loop, rows):
    """Train a version on a number of rows, a tenth of which are test rows, and add it."""
    loop.write(rows)
    options = TrainConfig(**TINY, source=str(loop.path), symbol="WALK", train_ratio=0.9)
    train_without_a_cluster(options.model_copy(update={"output_dir": loop.directory / "job", "symbols": ()}))
    models.main(["add", "WALK", str(loop.directory / "job"), "--models", str(loop.models)])
    return loop.store.newest("WALK").version


def test_an_older_version_that_was_added_by_hand_starts_no_job(loop, monkeypatch):
    add_by_hand(loop, 100)
    monkeypatch.setattr("tune_jobs.job.run_job", _killed)
    loop.run(300, "--retune-every", "20")
    assert loop.store.current("WALK").trained_until == str(DATES[299])


def test_the_first_promotion_says_why_this_version_of_several(tmp_path):
    loop = Loop(tmp_path, {"WALK": walk()})
    add_by_hand(loop, 290)
    newest = add_by_hand(loop, 300)
    loop.run(300)
    (event,) = loop.store.ledger.events("WALK", "promoted")
    assert event["version"] == newest
    assert event["details"]["why"].endswith("this one was added last")


def test_a_challenger_is_not_judged_on_rows_that_it_has_seen(loop):
    add_by_hand(loop, 340)
    loop.run(340, "--retune-every", "100")
    (event,) = loop.store.ledger.events("WALK", "promoted", "kept", limit=1)
    # 306 rows were for training and validation.
    assert (event["details"]["first"], event["details"]["sessions"]) == (str(DATES[306]), 34)


def test_a_version_of_many_symbols_is_as_old_as_the_last_row_of_any(tmp_path):
    values = {name: walk(seed) for seed, name in enumerate(("AAA", "BBB", "CCC"))}
    values["AAA"][285:] = np.nan
    loop = Loop(tmp_path, values)
    loop.run(300)
    assert loop.store.current("universe").trained_until == str(DATES[299])


def test_a_symbol_that_lacks_a_session_is_in_the_next_challenger(many):
    loop = many
    loop.values["BBB"][310] = np.nan
    loop.run(320, "--retune-every", "20")
    newest = loop.store.newest("universe")
    scored = load_checkpoint(loop.store.path("universe", newest.version) / SCORED_FILE)
    assert newest.trained_until == str(DATES[319])
    assert list(scored.symbols) == ["AAA", "BBB", "CCC"]


def test_after_a_version_without_a_summary_a_whole_job_renews(loop, monkeypatch):
    (directory,) = loop.store.directory("WALK").glob("2020*")
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["files"][SUMMARY_FILE]
    write_json(manifest, directory / "manifest.json")
    jobs = []

    def run_job(options):
        jobs.append(options)
        return train_without_a_cluster(options)

    monkeypatch.setattr("tune_jobs.job.run_job", run_job)
    loop.run(330, "--retune-every", "30", "--num-samples", "9")
    assert [(each.warm_start, each.num_samples) for each in jobs] == [(None, 9)]


def test_an_old_model_is_no_new_alarm_after_the_source_was_down(loop):
    options = ("--retune-every", "100", "--max-age", "3", "--max-silence", "100000")
    loop.run(304, *options)
    loop.path.unlink()
    assert update.run(update.main, loop.argv(*options)) == 1
    loop.run(304, *options)
    assert len(loop.store.ledger.events("WALK", "alarm", "alarm_over")) == 1


def test_a_damaged_challenger_or_shadow_costs_no_forecast(loop):
    options = ("--retune-every", "30", "--shadow-sessions", "5")
    loop.run(330, *options)
    first, second = loop.store.versions("WALK")
    loop.store.promote("WALK", first.version)
    loop.store.ledger.add_event("WALK", "shadow", version=second.version, session=str(DATES[329]))
    damaged = loop.store.checkpoint("WALK", second.version)
    damaged.chmod(0o644)
    damaged.write_bytes(b"")
    assert loop.run(331, *options) == 0
    assert loop.store.ledger.events("WALK", "kept", limit=1)[0]["version"] == second.version
    assert loop.store.ledger.published("WALK")[0]["origin"] == str(DATES[330])


@pytest.mark.parametrize(("champion", "challenger"), [(1.0, float("nan")), (1.0, 1.1)])
def test_a_challenger_whose_score_is_no_number_is_kept_out_as_a_worse_one(champion, challenger):
    judgement = Judgement(20, "2024-01-01", champion, challenger, 1.0)
    assert verdict_of(judgement, 0).decision == "kept"


def test_bad_options_are_refused_in_one_line(loop, capsys):
    for options, expected in (
        (["--end", "2020-05-01"], "every row"),
        (["--horizons", "0"], "at least 1"),
        (["--notify", "ftp://x"], "--notify"),
        (["--retune-every", "1"], "--retune-every"),
    ):
        assert update.run(update.main, loop.argv(*options)) == 2
        assert expected in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_job_makes_the_first_model_and_its_renewal_starts_warm(new, monkeypatch):
    monkeypatch.undo()
    loop = new
    options = ("--space", "small", "--num-samples", "2", "--renew-samples", "2", "--retune-every", "30")
    assert loop.run(300, *options) == 0
    assert loop.run(330, *options) == 0
    first, second = loop.store.versions("WALK")
    old, new = (
        json.loads((loop.store.path("WALK", each.version) / SUMMARY_FILE).read_text())
        for each in (first, second)
    )
    assert old["warm_start"] is None
    assert new["warm_start"]["trials"][0]["earlier_trial"] == old["pick"]["trial_number"]
    assert second.trained_until == str(DATES[329])
