"""Prices that are not in a given file: a directory with a file for each symbol, and addresses such as https and s3.

A ``source`` is kept in checkpoints, in studies and in the provenance of every answer, and messages show it. It must
therefore hold no password, token or key in clear; ``resolve`` refuses one. ``${NAME}`` stands for the value of an
environment variable, for example ``https://example.com/prices.csv?apikey=${PRICES_KEY}``: the prices are read with the
value, and only the name is kept and shown.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from forecast.config import FileConfig
from forecast.errors import DataError, SourceUnavailable, UsageError
from forecast.names import listed
from forecast.prices.files import PACKED, READABLE, Sheet, open_sheet

Result = TypeVar("Result")

TIME_LIMIT = 120.0
"""Seconds that the answer to one address may take."""
SILENCE_LIMIT = 30.0
"""Seconds that a web server may be silent."""
CONNECT_LIMIT = 10.0
"""Seconds that a connection to a web server may take."""
LONGEST_REASON = 200
"""Largest number of characters of a driver's error in a message."""
WEB = ("http", "https")

VARIABLE = re.compile(r"\$\{(\w+)\}")
PASSWORD = re.compile(r"(?<=://)[^:/@]*:(?P<secret>[^@]*(?:@[^@/?]*(?=@))*)@")
"""The password before a host; the signs / and ? end one that holds @."""
WEB_PASSWORD = re.compile(r"(?<=://)[^:/?#@]*:(?!\d+[/?#])(?P<secret>[^@]*)@")
"""The same in a web address, whose path may hold @ after the port."""
WEB_USER = re.compile(r"(?<=://)(?P<secret>[^:/?#@]+)@")
"""A user without a password in a web address: often a token."""
QUERY_SECRET = re.compile(
    r"[?&](?:[\w.-]*(?:pass(?:word|wd|phrase)?|pwd|token|secret|signature|credential)|(?:[\w.-]*[-_.]|api|access)?key|sig|auth)"
    r"=(?P<secret>[^&#]+)",
    re.IGNORECASE,
)
"""A parameter of a query that is a password, a token, a key or a signature by its name."""


def is_address(source: str) -> bool:
    """Whether ``source`` is an address such as ``https://...`` or ``postgresql://...`` rather than a path."""
    return "://" in source


def resolve(source: str) -> str:
    """The source with the values of the environment variables that it names as ``${NAME}``.

    A value within an address is escaped where it is a password or a parameter's value, so it is set as it is.

    Raises:
        UsageError: when a variable is not set, or an address holds a password, a token or a key in clear.
    """
    if is_address(source):
        _refuse_secrets(source)
    return with_values(source, "source")


def with_values(text: str, parameter: str) -> str:
    """The value of ``parameter`` with the values of the environment variables that it names; see ``resolve``.

    Raises:
        UsageError: when a variable is not set.
    """

    def value(found: re.Match[str]) -> str:
        set_to = os.environ.get(found[1])
        if set_to is None:
            shown = masked(text) if is_address(text) else text
            raise UsageError(f"`{parameter}` {shown}: the environment variable {found[1]} is not set; set it")
        before = text[: found.start()]
        return quote(set_to, safe="") if "://" in before and before.endswith((":", "=")) else set_to

    return VARIABLE.sub(value, text)


def masked(address: str) -> str:
    """The address with ``***`` for each password, token and key that it holds in clear."""
    web = address.lower().startswith("http")
    for pattern in (*((WEB_PASSWORD, WEB_USER) if web else (PASSWORD,)), QUERY_SECRET):
        for found in reversed(list(pattern.finditer(address))):
            if found["secret"] and not VARIABLE.search(found["secret"]):
                address = address[: found.start("secret")] + "***" + address[found.end("secret") :]
    return address


def _refuse_secrets(source: str) -> None:
    shown = masked(source)
    if shown != source:
        also = " (or PGPASSWORD or ~/.pgpass)" if source.startswith("postgres") else ""
        raise UsageError(
            f"`source` {shown}: a password or a key here would be kept in checkpoints; put it in an environment "
            f"variable{also} and write ${{NAME}} in its place, in single quotes"
        )


def without_values(text: str, source: str) -> str:
    """One line of another library's text, with the values of the variables in ``source`` replaced by their names."""
    text = " ".join(text.split())
    for name in VARIABLE.findall(source):
        value = os.environ.get(name)
        if value:
            for secret in (value, quote(value, safe="")):
                text = text.replace(secret, f"${{{name}}}")
    return text


def within_time(work: Callable[[], Result], name: str) -> Result:
    """The result of ``work``, which reads from ``name``; raises what ``work`` raises.

    Raises:
        SourceUnavailable: when it takes longer than ``TIME_LIMIT``.
    """
    done: list[Result] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="source", daemon=True)
    thread.start()
    thread.join(TIME_LIMIT)
    if failed:
        raise failed[0]
    if not done:
        raise SourceUnavailable(f"{name} did not answer within {TIME_LIMIT:g} s; try again later")
    return done[0]


def open_address(source: str, address: str, reading: FileConfig) -> Sheet:
    """The cells of a file at an address of any protocol that fsspec knows.

    The file is read whole, in one request. The environment has the credentials, as each protocol's driver expects
    them, and fsspec's own settings, for example ``FSSPEC_S3='{"anon": true}'``.

    Args:
        source: the address as it was given, for messages; see ``resolve``.
        address: the address with the values of its variables.
        reading: how the file is read.

    Raises:
        UsageError: when the protocol is unknown or its driver is not installed.
        SourceUnavailable: when no file arrives: no network, no such file, no permission, no answer in time.
        DataError: when the file cannot be read; see ``open_sheet``.
    """
    import fsspec

    protocol = address.partition("://")[0].lower()
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise UsageError(
            f"`source` {source}: unknown protocol {protocol}; use https, s3, gs, sqlite or postgresql, for example"
        ) from None
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or error.name
        raise UsageError(f"`source` {source} needs {package}; run `pip install {package}`") from None
    # A space in an address is escaped; what is escaped already, such as a signature, stays as it is.
    escaped = quote(address, safe="%/:=&?~#+!$,;'@()*[]") if protocol in WEB else address
    try:
        content = within_time(lambda: _fetch(escaped, protocol), source)
    except DataError:
        raise
    except Exception as error:  # each driver raises errors of its own
        reason = _reason(error).replace(escaped, source).replace(address, source)
        reason = without_values(reason, source)[:LONGEST_REASON]
        raise SourceUnavailable(
            f"{source} cannot be read ({reason}); check `source`, the network and your credentials"
        ) from None
    today = dt.datetime.now(dt.UTC).date()
    return replace(open_sheet(content, source, reading), retrieved=today)


def _fetch(address: str, protocol: str) -> bytes:
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    if protocol in WEB:
        import aiohttp

        limits = aiohttp.ClientTimeout(
            total=TIME_LIMIT, sock_connect=CONNECT_LIMIT, sock_read=min(SILENCE_LIMIT, TIME_LIMIT)
        )
        options = {"encoded": True, "client_kwargs": {"timeout": limits, "trust_env": True}}
    files, path = url_to_fs(address, **options)
    content: bytes = files.cat_file(path)
    return content


def _reason(error: Exception) -> str:
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if status in (401, 403):
        return f"access denied, HTTP {status}"
    if isinstance(status, int) and status:
        return f"HTTP {status} {getattr(error, 'message', '')}".strip()
    if isinstance(error, PermissionError):
        return "access denied"
    return str(error) or type(error).__name__


class Folder:
    """The files of prices in a directory, which is listed once."""

    def __init__(self, path: Path) -> None:
        """List the directory at ``path``.

        Raises:
            DataError: when it cannot be read.
        """
        try:
            names = sorted(file.name for file in path.iterdir() if file.is_file() and file.name[0] != ".")
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
        self._path = path
        self._stems = {name: stem for name in names if (stem := _stem(name)) is not None}
        self._names: dict[str, list[str]] = {}
        for name, stem in self._stems.items():
            self._names.setdefault(stem.casefold(), []).append(name)

    @property
    def symbols(self) -> list[str]:
        """The symbols that the files are named after, in alphabetical order."""
        return list(dict.fromkeys(self._stems.values()))

    def file_of(self, symbol: str) -> Path:
        """The file that has the name of ``symbol``, such as ``AAPL.csv`` or ``btc-usd.parquet``.

        Case does not matter. A sign of the symbol that is no letter or digit may be ``-`` or ``_`` in the name
        (``BTC/USD`` is in ``BTC-USD.csv``), unless another file has the sign itself.

        Raises:
            DataError: when no file or more than one has that name.
        """
        wanted = symbol.casefold()
        found = self._names.get(wanted) or [
            name for stem, names in self._names.items() if _stands_for(stem, wanted) for name in names
        ]
        if len(found) == 1:
            return self._path / found[0]
        if found:
            raise DataError(
                f"{self._path} has several files of {symbol} ({', '.join(found)}); give one of them as `source`"
            )
        raise DataError(
            f"{self._path} has no file of {symbol}, such as {symbol.replace('/', '-')}.csv; "
            f"it has {listed(self._stems) or 'no files of prices'}; choose another `symbol` or `source`"
        )


def _stem(name: str) -> str | None:
    """A file's name without its endings; None where it has none that can be read."""
    stem = name
    for endings in (PACKED, READABLE):
        ending = next((ending for ending in endings if stem.lower().endswith(ending)), "")
        stem = stem[: len(stem) - len(ending)]
    return stem if stem and stem != name else None


def _stands_for(stem: str, symbol: str) -> bool:
    return len(stem) == len(symbol) and all(
        there == sign or (there in "-_" and not sign.isalnum())
        for there, sign in zip(stem, symbol, strict=True)
    )
