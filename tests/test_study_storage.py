"""Studies in a database that many jobs share: a real PostgreSQL, which fails in the ways that servers fail."""

import contextlib
import json
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from unittest import mock
from urllib.parse import quote

import optuna
import pytest
from optuna.trial import TrialState
from postgres import running_server
from running_job import start_job, wait_for_end

from forecast.errors import StudyError, UsageError
from tune_jobs import databases
from tune_jobs import study as studies
from tune_jobs.databases import PostgresServer, SqliteFile, database_of, study_errors
from tune_jobs.options import TuneOptions
from tune_jobs.search import _claim
from tune_jobs.searcher import trial_checkpoint_path
from tune_jobs.space import SPACES

PASSWORD = "p@ss/word:1"
OBJECTIVES = ["MAE", "RMSE"]


@pytest.fixture(scope="module")
def server():
    with running_server("joe", PASSWORD) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    """Optuna pauses for up to two seconds before it tries again to create a trial."""
    monkeypatch.setattr("optuna.storages._rdb.storage.random", SimpleNamespace(random=lambda: 0.0))


@pytest.fixture
def sql(server):
    """Run a statement on the server as its superuser."""
    import psycopg

    def run(statement, database="postgres"):
        with psycopg.connect(
            host="127.0.0.1",
            port=server.port,
            user="joe",
            password=PASSWORD,
            dbname=database,
            autocommit=True,
        ) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def address(server, sql, request, monkeypatch):
    """The address of a new database, whose password is in the environment."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    name = f"db{abs(hash(request.node.name))}"
    sql(f"create database {name}")
    return f"postgresql+psycopg://joe@{server.address}/{name}"


def study_in(storage, database, resume=False):
    return studies.open_study(
        storage, database.study, database=database, resume=resume, objectives=OBJECTIVES, basis={}
    )


@pytest.fixture
def opened(address):
    """Open a study in the new database, as a job does."""
    with contextlib.ExitStack() as ending:

        def open_(name="s", resume=False, notify=lambda line: None, place=address):
            database = PostgresServer(place, name)
            storage = studies.open_storage(database, notify)
            ending.callback(storage.engine.dispose)
            return study_in(storage, database, resume)

        yield open_


def finish_a_trial(study):
    trial = study.ask()
    SPACES["small"](trial)
    trial.set_user_attr("seconds", 1.0)
    study.tell(trial, [1.0, 2.0])


def cut(sql, name="s"):
    """End the connection of the job that has a study, as an administrator does."""
    ended = sql(
        f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'tune_jobs {name}'"
    )
    assert ended == [(True,)], "a job has one connection"


def states_of(address, name):
    study = optuna.load_study(study_name=name, storage=address)
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def test_a_job_goes_on_after_its_connection_was_ended(opened, sql, address):
    told = []
    study = opened(notify=told.append)
    finish_a_trial(study)
    for _ in range(3):
        cut(sql)
        finish_a_trial(study)
    assert states_of(address, "s") == ["COMPLETE"] * 4
    assert told == []


@pytest.mark.parametrize("arrives", [False, True], ids=["before the commit", "after the commit"])
def test_a_transaction_cut_at_its_end_is_repeated(opened, sql, monkeypatch, arrives):
    """Every second commit meets the end of the connection, before or after the server has it."""
    study = opened()
    dialect = study._storage._backend.engine.dialect
    commit, commits = dialect.do_commit, []

    def cutting(connection):
        commits.append(connection)
        if len(commits) % 2:
            if arrives:
                commit(connection)
            cut(sql)
        commit(connection)
        if len(commits) % 2:
            connection.execute("select 1")

    monkeypatch.setattr(dialect, "do_commit", cutting)
    finish_a_trial(study)
    monkeypatch.undo()
    assert len(commits) > 10
    (done,) = study.get_trials(states=[TrialState.COMPLETE])
    assert (done.values, done.user_attrs) == ([1.0, 2.0], {"seconds": 1.0})
    assert len(done.params) > 3
    # A trial that was created twice is put back like one whose driver is gone.
    studies.put_back_running(study)
    assert TrialState.RUNNING not in {trial.state for trial in study.trials}


def test_a_job_waits_for_a_server_that_starts_again(opened, server, address):
    told = []
    study = opened(notify=told.append)
    finish_a_trial(study)
    server.stop()
    restart = threading.Timer(1.5, server.start)
    restart.start()
    try:
        finish_a_trial(study)
    finally:
        restart.join()
    assert states_of(address, "s") == ["COMPLETE"] * 2
    waiting, back = told
    assert "refused" in waiting
    assert waiting.endswith("the job tries again for 60 s")
    assert back == "the study's database is back: the job goes on"


def test_a_job_that_waited_in_vain_ends_in_one_line_with_nothing_lost(opened, server, address, monkeypatch):
    monkeypatch.setattr(PostgresServer, "patience", 1.0)
    study = opened()
    finish_a_trial(study)
    lost = study.ask()
    server.stop()
    try:
        with (
            pytest.raises(StudyError, match=r"cannot be used .*; check the host and the port") as ended,
            study_errors(PostgresServer(address, "s")),
        ):
            study.tell(lost, [1.0, 2.0])
        started = time.monotonic()
        with pytest.raises(optuna.exceptions.StorageInternalError):
            studies.put_back_running(study)  # does not wait once more
        assert time.monotonic() - started < 0.9
    finally:
        server.start()
    assert "\n" not in str(ended.value)
    assert states_of(address, "s") == ["COMPLETE", "RUNNING"]
    study._storage._backend.engine.dispose()
    again = opened(resume=True)
    assert studies.put_back_running(again) == [1]
    assert states_of(address, "s") == ["COMPLETE", "FAIL", "WAITING"]


def test_a_study_in_use_is_refused_and_other_names_are_not(opened, address, monkeypatch):
    monkeypatch.setattr(databases, "OPEN_WAIT", 0.3)
    finish_a_trial(opened("BTC"))
    finish_a_trial(opened("ETH"))
    with pytest.raises(StudyError, match=r"another job is working on the study 'BTC' in .*`study_name`"):
        opened("BTC", resume=True)
    assert states_of(address, "BTC") == states_of(address, "ETH") == ["COMPLETE"]


def test_a_job_whose_study_was_taken_over_writes_nothing_more(opened, sql, address, monkeypatch):
    monkeypatch.setattr(databases, "OPEN_WAIT", 0.2)
    monkeypatch.setattr(PostgresServer, "patience", 0.5)
    first = opened()
    trial = first.ask()
    cut(sql)
    assert studies.put_back_running(opened(resume=True)) == [0]
    with (
        pytest.raises(StudyError, match="another job is working on the study 's'"),
        study_errors(PostgresServer(address, "s")),
    ):
        first.tell(trial, [1.0, 2.0])
    assert states_of(address, "s") == ["FAIL", "WAITING"]


def test_jobs_that_create_the_tables_at_once_all_get_their_study(opened, address):
    with ThreadPoolExecutor(4) as jobs:
        opening = [jobs.submit(opened, f"s{number}") for number in range(4)]
    assert {each.result().study_name for each in opening} == {"s0", "s1", "s2", "s3"}


def test_a_job_killed_while_it_created_its_study_is_resumed(opened, monkeypatch):
    with (
        mock.patch.object(optuna.Study, "set_metric_names", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        opened("killed")
    monkeypatch.setattr(databases, "_key", lambda name: 1)  # that job's lock goes with its process
    assert opened("killed", resume=True).metric_names == OBJECTIVES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("joe@", "joe:hunter2@"),
            r"password authentication failed .*; check the user, and the password in PG",
        ),
        (("joe@", "ann@"), r"password authentication failed"),
        (("127.0.0.1", "no-such-host.invalid"), r"; check the host in `study_storage`"),
        ((":{port}/", ":1/"), r"refused.*; check the host and the port"),
        (("/db", "/none"), r"does not exist\); create the database \(createdb\)"),
        (("joe@", "reader@"), r"permission denied .*; name a user who may create and write tables"),
    ],
    ids=["password", "user", "host", "port", "database", "reader"],
)
def test_a_database_that_cannot_be_used_is_one_line_with_the_remedy(
    opened, address, server, sql, change, message
):
    with contextlib.suppress(Exception):
        sql(f"create user reader password '{PASSWORD}'")
    before, after = (part.format(port=server.port) for part in change)
    with pytest.raises(StudyError, match=message) as refused:
        opened(place=address.replace(before, after))
    assert "\n" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_user_who_may_only_read_is_refused_before_the_first_trial(opened, address, sql, tmp_path):
    opened("other")
    database = address.rpartition("/")[2]
    with contextlib.suppress(Exception):
        sql(f"create user reader password '{PASSWORD}'")
    sql("grant select on all tables in schema public to reader", database)
    with pytest.raises(StudyError, match=r"permission denied for table studies\); name a user who may"):
        opened("mine", place=address.replace("joe@", "reader@"))


def test_a_server_that_is_silent_is_given_up(opened, monkeypatch):
    monkeypatch.setattr(databases, "CONNECT_WAIT", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"postgresql+psycopg://joe@127.0.0.1:{silent.getsockname()[1]}/db"
        with pytest.raises(StudyError, match=r"timeout expired\); check the host and the port"):
            opened(place=place)


def test_tables_of_another_optuna_are_one_line(opened, address, sql):
    opened("first")
    sql("update alembic_version set version_num = 'v99.0.0.a'", address.rpartition("/")[2])
    with pytest.raises(
        StudyError, match=r"no longer compatible .*; install that version of Optuna"
    ) as refused:
        opened("second")
    assert "\n" not in str(refused.value)


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(
        UsageError, match=r"needs psycopg; run `pip install pareto-price-forecaster\[postgresql\]`"
    ):
        studies.open_storage(PostgresServer("postgresql://joe@db/studies", "s"))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("studies.db", "name a PostgreSQL database, such as"),
        ("sqlite:///studies.db", "name a PostgreSQL database, such as"),
        ("postgresql+asyncpg://joe:hunter2@db/studies", "name a PostgreSQL database, such as"),
        ("postgresql://joe:hunter2@hunter2@db/studies", "write %40 for each @"),
    ],
)
def test_a_wrong_address_is_refused_without_its_password(address, message):
    from forecast.config import parse_settings

    with pytest.raises(UsageError, match=message) as refused:
        parse_settings(TuneOptions, {"study_storage": address})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "dashboard"),
    [
        ("postgresql://joe@db/s", "optuna-dashboard postgresql+psycopg://joe@db/s"),
        (
            "postgres://joe@db/s?sslmode=require",
            "optuna-dashboard 'postgresql+psycopg://joe@db/s?sslmode=require'",
        ),
        (
            "postgresql+psycopg://joe:hunter2@db/s",
            "PGPASSWORD=... optuna-dashboard postgresql+psycopg://joe@db/s",
        ),
        (
            "postgresql://joe@db/s?password=hunter2&sslmode=require",
            "PGPASSWORD=... optuna-dashboard 'postgresql+psycopg://joe@db/s?sslmode=require'",
        ),
        (
            "postgresql+psycopg://joe:${DB_PASSWORD}@db/s",
            'optuna-dashboard "postgresql+psycopg://joe:${DB_PASSWORD}@db/s"',
        ),
    ],
)
def test_the_password_is_in_no_text_that_the_job_writes(address, dashboard, monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    options = TuneOptions(study_storage=address, output_dir="runs/first")
    database = database_of(options)
    assert database.dashboard == dashboard
    texts = [str(database), repr(database), repr(options), options.model_dump_json(), str(database.url)]
    assert all("hunter2" not in text for text in texts)
    assert options.model_dump()["study_storage"] == address.replace("hunter2", "***")
    assert database.connect_args.get("password") == (
        "hunter2" if "joe:" in address or "password=" in address else None
    )


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "stock_lstm_optuna"),
        ({"study_storage": "postgresql://db/s"}, "BTC-USD-artifacts"),
        ({"study_storage": "postgresql://db/s", "output_dir": "runs/a", "symbols": ["A", "B"]}, "universe-a"),
        ({"study_storage": "postgresql://db/s", "study_name": "ours"}, "ours"),
    ],
)
def test_the_default_name_tells_jobs_of_a_shared_database_apart(given, name):
    assert TuneOptions(**given).study == name


def test_without_the_option_the_study_is_a_file(tmp_path):
    assert database_of(TuneOptions(output_dir=tmp_path)) == SqliteFile(tmp_path / "optuna_study.db")


def test_a_study_is_resumed_only_where_its_checkpoints_are(opened, address, tmp_path):
    study, database = opened(), PostgresServer(address, "s")
    here, there = tmp_path / "here", tmp_path / "there"
    _claim(study, database, here, here)
    finish_a_trial(study)
    with pytest.raises(
        StudyError, match=rf"1 finished trials .* are in \S+:{here}, not in \S+:{there}; resume"
    ):
        _claim(study, database, there, there)
    there.mkdir()
    trial_checkpoint_path(there, 0).touch()
    _claim(study, database, there, there)
    assert study.user_attrs["runs_in"] == f"{socket.gethostname()}:{there}"


def arguments(address, *more):
    """Of a job with little to train."""
    little = ("--windows-per-epoch", "300", "--members", "1", "--no-retrain", "--no-report")
    return ("--study-storage", address, *little, *more)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("cluster")
def test_jobs_of_one_database_that_are_cut_and_killed_lose_nothing(tmp_path, address, sql, monkeypatch):
    """Two jobs at once: one loses its connection again and again, the other is killed and resumed.

    Each is ``python -m tune_jobs.pareto`` with ``--study-storage``.
    """
    import ray

    start = partial(start_job, address=ray.get_runtime_context().gcs_address)
    secret = address.replace("joe@", f"joe:{quote(PASSWORD, safe='')}@")
    monkeypatch.delenv("PGPASSWORD")
    first, second = tmp_path / "first", tmp_path / "second"
    jobs = {
        directory: start(directory, *arguments(secret, "--num-samples", "4")) for directory in (first, second)
    }

    def finished(directory):
        return len(list((directory / "checkpoints").glob("trial_*.pt")))

    cuts, deadline = 0, time.monotonic() + 280
    try:
        while any(job.poll() is None for job in jobs.values()) and time.monotonic() < deadline:
            if finished(second):
                jobs[second].kill()
            if jobs[first].poll() is None and cuts < finished(first) < 4:
                cut(sql, "BTC-USD-first")
                cuts += 1
            time.sleep(0.2)
        output, errors = jobs[first].communicate(timeout=10)
        assert jobs[first].returncode == 0, errors
    finally:
        for job in jobs.values():
            job.kill()
            job.wait()
    assert cuts
    assert jobs[second].returncode == -signal.SIGKILL
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert states_of(address, "BTC-USD-first").count("COMPLETE") == 4
    assert f"Study BTC-USD-first in {secret.replace(quote(PASSWORD, safe=''), '***')}" in output
    assert f"PGPASSWORD=... optuna-dashboard {address}" in output
    summary = json.loads((first / "summary.json").read_text())
    assert summary["study"] == "BTC-USD-first"
    assert summary["study_storage"] == secret.replace(quote(PASSWORD, safe=""), "***")
    assert not (first / "optuna_study.db").exists()

    before = optuna.load_study(study_name="BTC-USD-second", storage=address)
    kept = {trial.number: trial.values for trial in before.trials if trial.state == TrialState.COMPLETE}
    resumed = start(second, *arguments(secret, "--num-samples", "4", "--resume"))
    code, errors = wait_for_end(resumed, seconds=280)
    assert code == 0, errors
    after = optuna.load_study(study_name="BTC-USD-second", storage=address)
    assert sum(trial.state == TrialState.COMPLETE for trial in after.trials) == 4
    assert {number: after.trials[number].values for number in kept} == kept
    assert after.user_attrs["runs_in"] == f"{socket.gethostname()}:{second}"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    for text in [output.encode(), errors.encode(), *(path.read_bytes() for path in written)]:
        assert PASSWORD.encode() not in text
        assert quote(PASSWORD, safe="").encode() not in text
