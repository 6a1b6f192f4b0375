"""Every error the project raises on purpose, in one tree.

    ForecastError                 anything below; its text is one line: what, the value, the remedy
    ├── UsageError                an option or a combination of options is wrong       exit code 2
    ├── DataError                 the prices cannot be read or cannot be used          exit code 1
    │   ├── SourceUnavailable     a source did not answer; another one may             exit code 1
    │   │   ├── RateLimited       a source limits the rate of requests                 exit code 1
    │   │   └── SourceStopped     a source was not asked for all of many symbols       exit code 1
    │   └── UnknownSymbol         the source answered that it has no such symbol       exit code 1
    ├── TrainingError             training produced a number that is not finite        exit code 1
    ├── CheckpointError           a checkpoint is missing, damaged, foreign or newer   exit code 1
    ├── WindowError               values given for a prediction do not fit the model   exit code 1, HTTP 422
    ├── LevelError                the model has no interval of the requested level     exit code 1, HTTP 422
    ├── AgeError                  the model is older than the user allows              exit code 1, HTTP 503
    ├── LedgerError               the ledger cannot be opened, used or written         exit code 1
    ├── StoreError                the model store lacks something, or cannot be used   exit code 1
    ├── TrackingError             MLflow does not answer, or refuses what is logged    exit code 1
    └── StudyError                a tuning study cannot be opened, used or written     exit code 1

The command line turns them into exit codes (``forecast.cli.command``) and the server into HTTP statuses
(``serve_app``); nothing else catches them.

A message names a parameter in backticks, with a value if needed: `start`, `source=yahoo`, `log_prices=False`. Each edge
spells parameters as its users write them (``spell_parameters``): on the command line they are ``--start``,
``--source yahoo`` and ``--no-log-prices``.
"""

import re
from collections.abc import Callable

PARAMETER = re.compile(r"`([a-z]\w*)(?:=([^`\s]+))?`")


class ForecastError(Exception):
    """Base of every error raised on purpose; its message is one line that a person can act on."""

    exit_code = 1


class UsageError(ForecastError):
    """An option, or a combination of options, is wrong."""

    exit_code = 2


class DataError(ForecastError):
    """The prices cannot be read, or do not suffice for the request."""


class SourceUnavailable(DataError):
    """A source gave no usable answer (network, rate limit, garbage); another source may."""


class RateLimited(SourceUnavailable):
    """The source limits the rate of requests; ``retry_after`` is the seconds that it asks to wait, or None."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SourceStopped(SourceUnavailable):
    """The source stopped answering before it was asked for all symbols."""


class UnknownSymbol(DataError):
    """The source answered, and has no prices under that symbol."""


class TrainingError(ForecastError):
    """Training produced a loss or a prediction that is not a finite number."""


class CheckpointError(ForecastError):
    """A checkpoint is missing, truncated, of a foreign or newer format, or holds code."""


class WindowError(ForecastError, ValueError):
    """Values given for a prediction do not fit the model."""


class BadWindow(WindowError):
    """One of several windows does not fit the model; ``index`` says which."""

    def __init__(self, index: int, error: WindowError) -> None:
        super().__init__(str(error))
        self.index = index


class LevelError(ForecastError, ValueError):
    """The model has no interval of the requested level."""


class AgeError(ForecastError):
    """The model is older than the user allows."""


class StudyError(ForecastError):
    """A tuning study cannot be opened, used or written."""


class LedgerError(ForecastError):
    """The ledger of issued forecasts cannot be opened, used or written."""


class TrackingError(ForecastError):
    """MLflow does not answer, or refuses what is logged."""


class StoreError(ForecastError):
    """The model store lacks a name or a version, or cannot be used."""


def spell_parameters(message: str, spell: Callable[[str, str | None], str]) -> str:
    """Replace each parameter of a message by ``spell(name, value)``; the value is None for a parameter without one."""
    return PARAMETER.sub(lambda found: spell(found[1], found[2]), message)
