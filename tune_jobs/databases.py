"""Where a study is kept: an SQLite file in the output directory, or a PostgreSQL database that many jobs share.

``tune_jobs.study`` does the same with either; a ``Database`` knows what differs: the address, the settings of a
connection, how long to wait for the server, and the remedy for an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import optuna
import sqlalchemy
from sqlalchemy.engine import URL, Engine, make_url

from forecast.errors import StudyError, UsageError
from forecast.prices.locations import LONGEST_REASON, masked, with_values, without_values
from tune_jobs.options import TuneOptions

STUDY_FILE = "optuna_study.db"
DATABASE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)

OPEN_WAIT = 3.0
"""Seconds to wait for another process's lock before a job."""
LOCK_WAIT = 30.0
"""Seconds to wait for such a lock during a job, which has more to lose."""
CONNECT_WAIT = 5
"""Seconds that one connection to a server may take."""
LOST_WAIT = 60.0
"""Seconds during a job to wait for a server that is gone: more than a restart takes, or the change to a replica."""
SILENCE = {"idle": 10, "interval": 5, "count": 3}
"""TCP keepalives: after about 25 s without an answer, each side knows that the other is gone."""
IN_USE = "55P03"
"""PostgreSQL's code for a lock that was not free in time."""


class Database(ABC):
    """A database that holds studies; as text, its name for messages and files, without a password."""

    elsewhere: ClassVar[str]
    """The options that choose another study."""
    shared: ClassVar[bool]
    """Whether jobs of other directories and machines have studies there."""
    patience: ClassVar[float]
    """Seconds to wait during a job for a connection."""

    @property
    @abstractmethod
    def url(self) -> URL:
        """The address that SQLAlchemy connects to, without a password."""

    @property
    @abstractmethod
    def connect_args(self) -> dict[str, Any]:
        """The driver's settings for a connection."""

    @abstractmethod
    def opening(self) -> contextlib.AbstractContextManager[None]:
        """Keep other jobs away while the tables are created."""

    @abstractmethod
    def prepare(self, connection: Any) -> None:
        """Give a driver's new connection the settings of a job."""

    @abstractmethod
    def close(self, engine: Engine) -> None:
        """Complete what other programs read, after the last write."""

    @abstractmethod
    def problem(self, error: BaseException) -> str:
        """Say in one line why the database cannot be used, and the remedy."""

    @property
    @abstractmethod
    def dashboard(self) -> str:
        """The shell command that shows the studies."""


@dataclass(frozen=True)
class SqliteFile(Database):
    """A file; the lock of the output directory keeps other jobs away."""

    path: Path
    elsewhere = "`output_dir`"
    shared = False
    patience = 0.0

    def __str__(self) -> str:
        return str(self.path.absolute())

    @property
    def url(self) -> URL:
        """The file's address; one that is put together as text would be decoded."""
        return URL.create("sqlite", database=str(self.path.absolute()))

    @property
    def connect_args(self) -> dict[str, Any]:
        """How long to wait for another program's lock."""
        return {"timeout": OPEN_WAIT}

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Take the write lock once: Optuna would wait for it several times over."""
        engine = sqlalchemy.create_engine(
            self.url, connect_args=self.connect_args, poolclass=sqlalchemy.NullPool
        )
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield

    def prepare(self, connection: Any) -> None:
        """Set write-ahead logging, with the durability and the patience of a job.

        Write-ahead logging with ``synchronous=NORMAL`` more than halves the cost of each trial's writes, and lets a
        dashboard read while the job writes; a power cut can lose the last transactions but cannot corrupt the file.
        """
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute(f"PRAGMA busy_timeout={round(1000 * LOCK_WAIT)}")
        cursor.close()

    def close(self, engine: Engine) -> None:
        """Merge the write-ahead log into the file, so that this one file holds the whole study."""
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def problem(self, error: BaseException) -> str:
        """Say why the file cannot be used."""
        reason = str(_of_driver(error)).splitlines()[0]
        if "locked" in reason:
            remedy = "close the other program that uses the file, then continue with `resume`"
        elif "full" in reason:
            remedy = "free disk space there, then continue with `resume`"
        else:
            remedy = "restore the file from a copy"
        return (
            f"the study's database {self} cannot be used ({reason}); {remedy}, or choose another `output_dir`"
        )

    @property
    def dashboard(self) -> str:
        """The command for this file."""
        return f"optuna-dashboard {shlex.quote(f'sqlite:///{self.path}')}"


REMEDIES = {
    "no password supplied": "set PGPASSWORD, or put the password in ~/.pgpass",
    "password authentication failed": "check the user, and the password in PGPASSWORD, in ~/.pgpass or in "
    "`study_storage`",
    "no pg_hba.conf entry": "let the server accept this user from this machine (pg_hba.conf)",
    "permission denied": "name a user who may create and write tables there (GRANT CREATE, USAGE ON SCHEMA), or who "
    "owns Optuna's tables",
    'role "': "check the user in `study_storage`",
    'database "': "create the database (createdb), or name another one in `study_storage`",
    "resolve host": "check the host in `study_storage`",
    "translate host": "check the host in `study_storage`",
    "refused": "check the host and the port, and that the server runs and listens there",
    "lock timeout": "close the other program that locks the tables, then continue with `resume`",
    "timeout": "check the host and the port, and that no firewall blocks the connection",
    "read-only": "name the primary server and a user who may write",
    "too many": "try again later, or let the server accept more connections",
    "slots are reserved": "try again later, or let the server accept more connections",
    "no space left": "free disk space on the server, then continue with `resume`",
}
"""What to do, by a part of PostgreSQL's message."""
OTHER_REMEDY = "check `study_storage` and the server, then continue with `resume`"


@dataclass(frozen=True, repr=False)
class PostgresServer(Database):
    """A database of a PostgreSQL server.

    A job has one connection, which holds an advisory lock on the name of its study. The server releases the lock when
    the connection ends, however the job ends; a job that lost its connection must have the lock again before it writes.

    Attributes:
        address: the address as it was given: it may hold a password, or ``${NAME}`` for an environment variable.
        study: the name of the job's study.
    """

    address: str
    study: str
    elsewhere = "`study_name` and `output_dir`"
    shared = True
    patience = LOST_WAIT

    def __str__(self) -> str:
        return masked(self.address)

    @property
    def _whole(self) -> URL:
        try:
            url = make_url(with_values(self.address, "study_storage"))
        except (sqlalchemy.exc.ArgumentError, ValueError):
            raise UsageError(
                f"`study_storage` {self}: not an address of a database; use "
                "postgresql+psycopg://user@host/database, with @ / : ? in a password escaped (%40 for @)"
            ) from None
        if isinstance(password := url.query.get("password"), str):  # libpq takes it there as well
            url = url.difference_update_query(["password"]).set(password=password)
        return url.set(drivername="postgresql+psycopg")

    @property
    def url(self) -> URL:
        """The address without the password."""
        return self._whole._replace(password=None)

    @property
    def connect_args(self) -> dict[str, Any]:
        """The password, and limits to how long a server may be silent; the address may set other limits."""
        limits: dict[str, Any] = {
            "connect_timeout": CONNECT_WAIT,
            "application_name": f"tune_jobs {self.study}",
            "tcp_user_timeout": 1000 * (SILENCE["idle"] + SILENCE["interval"] * SILENCE["count"]),
            **{f"keepalives_{name}": value for name, value in SILENCE.items()},
        }
        whole = self._whole
        settings = {name: value for name, value in limits.items() if name not in whole.query}
        return settings | ({"password": str(whole.password)} if whole.password else {})

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Let one job at a time look for the tables and create them: PostgreSQL's own way fails in a race."""
        engine = sqlalchemy.create_engine(
            self.url, connect_args=self.connect_args, poolclass=sqlalchemy.NullPool
        )
        with engine.connect() as connection:
            connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_WAIT:g}s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_key('tables')})")
            yield

    def prepare(self, connection: Any) -> None:
        """Take the study's lock, and let the server find out soon when this machine is gone."""
        keepalives = [f"SET tcp_keepalives_{name} = {value}" for name, value in SILENCE.items()]
        try:
            connection.execute(
                "; ".join(
                    [
                        *keepalives,
                        f"SET lock_timeout = '{OPEN_WAIT:g}s'",
                        f"SELECT pg_advisory_lock({_key('study ' + self.study)})",
                        f"SET lock_timeout = '{LOCK_WAIT:g}s'",
                    ]
                )
            )
            connection.commit()
        except BaseException:
            connection.close()
            raise

    def close(self, engine: Engine) -> None:
        """Do nothing: what is written is there for all."""

    def problem(self, error: BaseException) -> str:
        """Say why the server cannot be used."""
        driver = _of_driver(error)
        if getattr(driver, "sqlstate", None) == IN_USE and is_connecting(error):
            return (
                f"another job is working on the study {self.study!r} in {self}; wait for that job to end, or choose "
                f"another {self.elsewhere}"
            )
        lines = str(driver).splitlines() or [type(driver).__name__]
        # A failed connection has a line for each address of the host; an error of a statement repeats the statement.
        reason = " ".join(" ".join(lines).split()) if is_connecting(error) else lines[0]
        reason = without_values(reason, self.address)
        if password := self._whole.password:
            for secret in (str(password), quote(str(password), safe="")):
                reason = reason.replace(secret, "***")
        remedy = next((remedy for part, remedy in REMEDIES.items() if part in reason.lower()), OTHER_REMEDY)
        return f"the study's database {self} cannot be used ({reason[:LONGEST_REASON]}); {remedy}"

    @property
    def dashboard(self) -> str:
        """The command for this database; the reader gives a password that was in the address."""
        whole, given = self._whole, masked(self.address)
        if given != self.address:  # a password in clear: PGPASSWORD has the same effect
            shown = masked(whole._replace(password=None).render_as_string())
            return f"PGPASSWORD=... optuna-dashboard {shlex.quote(shown)}"
        shown = f"{whole.drivername}://{given.partition('://')[2]}"
        quoted = f'"{shown}"' if "${" in shown else shlex.quote(shown)
        return f"optuna-dashboard {quoted}"


def _key(name: str) -> int:
    """A key of PostgreSQL's advisory locks, which are numbers of 64 bits with a sign."""
    digest = hashlib.sha256(f"pareto-price-forecaster {name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


def database_of(options: TuneOptions) -> Database:
    """Return the database that holds a job's study."""
    if options.study_storage:
        return PostgresServer(options.study_storage, options.study)
    return SqliteFile(options.output_dir / STUDY_FILE)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_driver(error: BaseException) -> BaseException:
    """The driver's error behind SQLAlchemy's or Optuna's."""
    found = next((each.orig for each in _chain(error) if isinstance(each, sqlalchemy.exc.DBAPIError)), None)
    return found or error.__cause__ or error


def is_connecting(error: BaseException) -> bool:
    """Return whether a connection could not be made, or was lost."""
    return any(
        isinstance(each, sqlalchemy.exc.DBAPIError)
        and (each.connection_invalidated or each.statement is None)
        for each in _chain(error)
    )


@contextlib.contextmanager
def study_errors(database: Database) -> Iterator[None]:
    """Turn database errors into a ``StudyError`` of one line."""
    try:
        yield
    except DATABASE_ERRORS as error:
        raise StudyError(database.problem(error)) from error
