"""Command lines made from settings classes, and the edge where errors become exit codes.

An option is defined once, as a field of a ``Config``; here it becomes ``--kebab-case``, with the field's
description, choices and default in ``--help``. Shared by every command of the project.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import signal
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from forecast.errors import ForecastError, UsageError
from forecast.version import DISTRIBUTION, installed_version

EXIT_INTERRUPTED = 130
DEBUG = "--debug"

Settings = TypeVar("Settings", bound=BaseModel)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of descriptions and examples, and lines options up in one column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(110, _terminal_width()))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class ShowVersion(argparse.Action):
    """Prints the version and ends; argparse's own wants it looked up before anybody asks."""

    def __call__(self, *_: Any) -> NoReturn:
        """Print and end."""
        print(f"{DISTRIBUTION} {installed_version()}")
        raise SystemExit(0)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other error of the project."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **settings)
        self.add_argument(
            "--version", action=ShowVersion, nargs=0, default=argparse.SUPPRESS, help="show the version"
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        raise UsageError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def _terminal_width() -> int:
    try:
        return max(60, os.get_terminal_size().columns - 2)
    except OSError:
        return 100


def option_name(field: str) -> str:
    """The option's spelling on the command line, for example ``--num-samples``."""
    return "--" + field.replace("_", "-")


def add_options(parser: argparse.ArgumentParser, settings: type[BaseModel]) -> None:
    """Add one option per field of ``settings`` to ``parser``; values stay text until validation."""
    parser.add_argument(
        DEBUG, action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    for cls in reversed(settings.__mro__):
        own = [name for name in getattr(cls, "__annotations__", {}) if name in settings.model_fields]
        if not own:
            continue
        group = parser.add_argument_group(*_group_title(cls))
        for name in own:
            _add_option(group, name, settings.model_fields[name])


def _group_title(cls: type) -> tuple[str]:
    doc = (cls.__doc__ or cls.__name__).strip().splitlines()[0]
    return (doc.rstrip("."),)


def _add_option(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    kind = _without_none(field.annotation)
    required = field.is_required()
    default = "" if required else _shown_default(field)
    text = ((field.description or "") + default).replace("%", "%%")
    name = field.alias or name
    common: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        plain_flag = field.default is False
        action: Any = "store_true" if plain_flag else argparse.BooleanOptionalAction
        group.add_argument(option_name(name), action=action, **common)
        return
    common["required"] = required
    if get_origin(kind) is Literal:
        common["choices"] = [str(choice) for choice in get_args(kind)]
    elif get_origin(kind) in (list, tuple):
        common["nargs"] = "*"
        common["metavar"] = _metavar(get_args(kind)[0])
    else:
        common["metavar"] = _metavar(kind)
    group.add_argument(option_name(name), **common)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        return inner[0]
    return annotation


def _metavar(kind: Any) -> str:
    return {int: "N", float: "X", Path: "PATH", dt.date: "DATE"}.get(kind, "TEXT")


def _shown_default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=False)
    if value is None or value is False or value is PydanticUndefined:
        return ""
    if isinstance(value, tuple):
        return f" (default: {','.join(map(str, value))})" if value else ""
    return f" (default: {str(value).lower() if value is True else value})"


def parse_settings(
    settings: type[Settings], given: dict[str, Any], spell: Callable[[str], str] = option_name
) -> Settings:
    """Validate ``given`` (field name to value) into ``settings``.

    Args:
        settings: the class to make.
        given: values by field name, as text or as they are.
        spell: how a field is spelled for whoever gave it.

    Raises:
        UsageError: on the first field that does not fit, naming the option, the value and the reason.
    """
    try:
        return settings.model_validate(given)
    except ValidationError as error:
        raise UsageError(_describe(error, spell)) from None


def _describe(error: ValidationError, spell: Callable[[str], str]) -> str:
    """One line for the first problem of a validation error, in the words of whoever gave the options."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    option = spell(str(first["loc"][0]))
    if first["type"] == "extra_forbidden":
        return f"{option}: no such option"
    value = first["input"]
    if len(first["loc"]) > 1:
        option = f"{option} (number {int(first['loc'][1]) + 1})"
    if first["type"] == "missing":
        return f"{option}: too few values"
    return f"{option} {value}: {message[0].lower()}{message[1:]}"


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Call ``main`` with the command line and turn its errors into one line and an exit code.

    Codes: 0 done, 1 failure, 2 bad usage, 130 interrupted. ``--debug`` anywhere on the command line
    shows the traceback as well.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG in arguments
    if threading.current_thread() is threading.main_thread():
        # What a spot instance or Kubernetes sends ends a command as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return main([a for a in arguments if a != DEBUG])
    except ForecastError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (``| head``); point stdout elsewhere so that the
        # interpreter's own flush at exit does not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug:
            raise
        print(f"error: {describe_os_error(error)}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if debug:
            raise
        print(
            f"error: {error.name} is not installed in {sys.executable}; activate the environment of the project "
            "(source .venv/bin/activate), or install it there",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        if debug:
            raise
        lines = str(error).strip().splitlines() or [""]
        print(
            f"error: unexpected {type(error).__name__}: {lines[0]}; {DEBUG} shows where it comes from",
            file=sys.stderr,
        )
        return 1


def describe_os_error(error: OSError) -> str:
    """One line for an operating-system error: what it is, where, and what to do."""
    where = f" ({error.filename})" if error.filename else ""
    reason = error.strerror or str(error)
    return f"{reason.lower()}{where}; free some space or choose a place that can be written"
