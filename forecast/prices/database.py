"""Prices from a table or a query of a database, through SQLAlchemy.

An address is SQLAlchemy's, with ``table`` or ``query`` in its query string:

    sqlite:///prices.db?table=prices
    postgresql://reader@db.example.com/market?table=daily.prices
    postgresql://reader:${DB_PASSWORD}@db.example.com/market?query=SELECT day, close FROM prices WHERE ticker = 'ACME'

A password belongs in ``PGPASSWORD``, in ``~/.pgpass`` or in a variable of your own (``${DB_PASSWORD}``): one that is
written in the address is refused (``forecast.prices.locations``).
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects import registry
from sqlalchemy.engine import URL, Connection, make_url

from forecast.config import FileConfig, home_expanded
from forecast.errors import DataError, SourceUnavailable, UsageError
from forecast.names import plain_name
from forecast.prices.files import Sheet, sheet_of_frame
from forecast.prices.locations import within_time, without_values
from forecast.prices.symbols import COLUMN_NAMES, find_column, rows_of_symbol

DIALECTS = ("sqlite", "postgresql", "postgres", "mysql", "mariadb", "oracle", "mssql")
"""Databases that SQLAlchemy knows by itself."""
MOST_PARAMETERS = 2000
"""Largest number of names that a query asks for: SQL Server allows 2100 parameters."""
LONGEST_LIST = 1000
"""Largest number of names in a list: Oracle allows no more."""
NAMED_TABLES = 20
"""Largest number of tables that an error lists."""


def is_database(address: str) -> bool:
    """Whether an address is one of a database: of ``DIALECTS``, or of another that an installed package adds."""
    dialect = address.partition("://")[0].partition("+")[0].lower()
    if dialect in DIALECTS:
        return True
    try:
        registry.load(dialect)
    except sa.exc.NoSuchModuleError:
        return False
    return True


def open_database(source: str, address: str, symbols: Sequence[str] | None, reading: FileConfig) -> Sheet:
    """The rows of the table or the query that an address names, read in a read-only transaction.

    Of a table with a column of symbols, only the rows of ``symbols`` are fetched, in one query, if some are given.
    Times with a zone are read as UTC, so that the zone of the session does not matter.

    Args:
        source: the address as it was given, for messages.
        address: the address with the values of its variables.
        symbols: the symbols whose prices are read; None for all.
        reading: how the columns are read.

    Raises:
        UsageError: when the address is wrong, names no table, or needs a driver that is not installed.
        SourceUnavailable: when the database does not answer, or refuses the user.
        DataError: when the rows cannot be read; see ``Sheet.table``.
    """
    source = " ".join(source.split())  # a query may have lines; a message is one line
    url, table, query = _parsed(source, address)
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
    except ModuleNotFoundError as error:
        remedy = "run `pip install pareto-price-forecaster[postgresql]`"
        if error.name != "psycopg":  # a module's name is not always its package's
            remedy = (
                f"install the package that has {error.name}, or name another driver, such as mysql+pymysql://"
            )
        raise UsageError(f"`source` {source} needs {error.name}; {remedy}") from None
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, TypeError, ValueError) as error:
        raise UsageError(
            f"`source` {source}: {without_values(str(error), source)}; check the address"
        ) from None

    def read() -> pd.DataFrame:
        with engine.connect() as connection:
            connection = connection.execution_options(postgresql_readonly=True)
            if query is not None:
                return _frame(connection.execution_options(no_parameters=True).exec_driver_sql(query))
            return _rows(connection, table, source, symbols, reading)

    try:
        frame = within_time(read, source)
    except sa.exc.DBAPIError as error:
        reason = without_values(str(error.orig), source)
        if error.statement is None or error.connection_invalidated:  # no connection, or a lost one
            raise SourceUnavailable(
                f"{source} cannot be read ({reason}); check the address, the user and the password"
            ) from None
        raise DataError(f"{source} cannot be read ({reason}); check the `table` or the `query`") from None
    except sa.exc.SQLAlchemyError as error:
        raise DataError(
            f"{source} cannot be read ({without_values(str(error), source)}); check the address"
        ) from None
    if frame.empty:
        raise DataError(f"{source} has no rows; choose another table or query")
    return replace(sheet_of_frame(frame, source), retrieved=dt.datetime.now(dt.UTC).date())


def _parsed(source: str, address: str) -> tuple[URL, str | None, str | None]:
    """The address without ``table`` and ``query``, with its driver; and these two."""
    try:
        url = make_url(address)
    except (sa.exc.ArgumentError, ValueError):
        raise UsageError(
            f"`source` {source}: not an address of a database; use postgresql://user@host/database?table=prices"
        ) from None
    given = {name: url.query.get(name) for name in ("table", "query")}
    url = url.difference_update_query(given)
    table, query = given["table"], given["query"]
    if isinstance(table, tuple) or isinstance(query, tuple) or (table and query):
        raise UsageError(f"`source` {source}: name one table or one query")
    if query is not None and not query.lstrip(" (\n").lower().startswith(("select", "with")):
        raise UsageError(f"`source` {source}: the query is no SELECT; use SELECT")
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    elif url.get_backend_name() == "sqlite":
        path = home_expanded(url.database or "")
        if not path.is_file():
            raise DataError(f"no database at {url.database or source}; check the path given as `source`")
        # Python's sqlite3 creates a missing file, and opens one to write, unless a URI says otherwise.
        url = url.set(database=f"file:{quote(str(path))}").update_query_dict({"mode": "ro", "uri": "true"})
    return url, table, query


def _rows(
    connection: Connection, given: str | None, source: str, symbols: Sequence[str] | None, reading: FileConfig
) -> pd.DataFrame:
    """The rows of ``symbols`` where a column of symbols tells them, else all rows of the table."""
    table, texts = _table(connection, given, source)
    asked = _in_any_case(symbols or ())
    if not symbols or len(asked) > MOST_PARAMETERS:
        return _frame(connection.execute(sa.select(table)))
    for column in _symbol_columns(table, source, reading):
        if column.name not in texts:
            continue
        lists = [column.in_(asked[at : at + LONGEST_LIST]) for at in range(0, len(asked), LONGEST_LIST)]
        frame = _frame(connection.execute(sa.select(table).where(sa.or_(*lists))))
        if frame[column.name].isin(symbols).any():
            return frame
        distinct, rows = connection.execute(
            sa.select(sa.func.count(column.distinct()), sa.func.count(column))
        ).one()
        if 1 < distinct < rows:  # symbols, rather than one symbol's other name or the numbers of rows
            there = _frame(connection.execute(sa.select(column).distinct().order_by(column)))
            rows_of_symbol(there, symbols[0], column.name, source, lambda: None)
    return _frame(connection.execute(sa.select(table)))


def _in_any_case(symbols: Sequence[str]) -> list[str]:
    """The symbols in each case too: a reader refuses one that the table writes in two ways."""
    ways = [(symbol, symbol.upper(), symbol.lower(), symbol.capitalize()) for symbol in symbols]
    return list(dict.fromkeys(itertools.chain.from_iterable(ways)))


def _table(connection: Connection, given: str | None, source: str) -> tuple[sa.TableClause, set[str]]:
    """The table or view called ``given``, which may begin with its schema; and the names of its columns of text."""
    found = sa.inspect(connection)
    tables = [*found.get_table_names(), *found.get_view_names()]
    schema, _, name = given.rpartition(".") if given and given not in tables else ("", "", given)
    try:
        columns = found.get_columns(name, schema=schema or None) if name else []
    except sa.exc.NoSuchTableError:
        columns = []
    if not columns:
        listed = ", ".join(tables[:NAMED_TABLES]) + (", ..." if len(tables) > NAMED_TABLES else "")
        problem = f"no table {given}" if given else "no table is named"
        raise UsageError(
            f"`source` {source}: {problem}; add ?table= with one of: {listed or '(the database has none)'}"
        )
    # Columns without a type arrive as the driver gives them: SQLAlchemy's type of a date in SQLite refuses most text.
    clause = sa.table(str(name), *[sa.column(column["name"]) for column in columns], schema=schema or None)
    return clause, {column["name"] for column in columns if _is_text(column["type"])}


def _is_text(kind: Any) -> bool:
    """Whether a column is text that ``=`` compares as it is; CHAR is padded with spaces."""
    return isinstance(kind, sa.String) and not isinstance(kind, sa.CHAR | sa.Enum)


def _symbol_columns(table: sa.TableClause, source: str, reading: FileConfig) -> list[sa.ColumnClause[Any]]:
    """The columns that may hold symbols, the likeliest first."""
    columns = [column for column in table.c if isinstance(column, sa.ColumnClause)]
    if reading.symbol_column is not None:
        names = [column.name for column in columns]
        columns = [columns[find_column(names, reading.symbol_column, source, "symbol_column")]]
    else:
        columns = [column for column in columns if plain_name(column.name) in COLUMN_NAMES]
        columns.sort(key=lambda column: COLUMN_NAMES.index(plain_name(column.name)))
    return columns


def _frame(result: sa.CursorResult[Any]) -> pd.DataFrame:
    """The rows with columns of numbers, text and dates."""
    names = list(map(str, result.keys()))
    rows = [tuple(row) for row in result]
    columns = [_column(pd.Series(cells, dtype=object)) for cells in zip(*rows, strict=True)]
    columns = columns or [pd.Series(dtype=object) for _ in names]
    return pd.concat(columns, axis=1).set_axis(names, axis=1)


def _column(cells: pd.Series[Any]) -> pd.Series[Any]:
    kinds = {type(cell) for cell in cells if cell is not None}
    if Decimal in kinds and kinds <= {Decimal, int, float}:
        return cells.astype("float64")
    if kinds == {dt.datetime}:
        zoned = {cell.tzinfo is not None for cell in cells if cell is not None}
        if len(zoned) == 1:
            return pd.Series(pd.to_datetime(cells, utc=zoned.pop()))
    return cells.infer_objects()
