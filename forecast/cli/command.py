"""Command lines built from settings classes, and the place where errors become exit codes.

An option is defined once, as a field of a ``Config``; here it becomes ``--kebab-case``, with the field's description,
choices and default in ``--help``. All commands of the project share this module.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from forecast.errors import ForecastError, UsageError, spell_parameters
from forecast.version import DISTRIBUTION, installed_version

EXIT_INTERRUPTED = 130
DEBUG = "--debug"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of descriptions and examples, and aligns options in one column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(110, _terminal_width()))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class ShowVersion(argparse.Action):
    """Prints the version and exits; argparse's action would look the version up at every start."""

    def __call__(self, *_: Any) -> NoReturn:
        """Print and exit."""
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
            _add_option(group.add_argument, name, settings.model_fields[name])


def _group_title(cls: type) -> tuple[str]:
    doc = (cls.__doc__ or cls.__name__).strip().splitlines()[0]
    return (spell_options(doc.rstrip(".")),)


def _add_option(add: Callable[..., object], name: str, field: FieldInfo) -> None:
    kind = _without_none(field.annotation)
    required = field.is_required()
    default = "" if required else _shown_default(field)
    text = spell_options((field.description or "") + default).replace("%", "%%")
    name = field.alias or name
    common: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        plain_flag = field.default is False
        action: Any = "store_true" if plain_flag else argparse.BooleanOptionalAction
        add(option_name(name), action=action, **common)
        return
    common["required"] = required
    if get_origin(kind) is Literal:
        common["choices"] = [str(choice) for choice in get_args(kind)]
    elif get_origin(kind) in (list, tuple):
        common["nargs"] = "*"
        common["metavar"] = _metavar(get_args(kind)[0])
    else:
        common["metavar"] = _metavar(kind)
    add(option_name(name), **common)


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


def spell_options(message: str) -> str:
    """Spell a message's parameters as options: `start` becomes ``--start``, `source=yahoo` ``--source yahoo``.

    See ``forecast.errors`` for how messages name parameters.
    """

    def spell(name: str, value: str | None) -> str:
        if value is None or value == "True":
            return option_name(name)
        return option_name(f"no_{name}") if value == "False" else f"{option_name(name)} {value}"

    return spell_parameters(message, spell)


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Call ``main`` with the command line and turn its errors into one line and an exit code.

    Codes: 0 done, 1 failure, 2 bad usage, 130 interrupted. ``--debug`` anywhere on the command line
    shows the traceback as well.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG in arguments
    if threading.current_thread() is threading.main_thread():
        # Spot instances and Kubernetes send SIGTERM; it ends a command as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _no_interrupt_lost():
            return main([a for a in arguments if a != DEBUG])
    except ForecastError as error:
        if debug:
            raise
        print(f"error: {spell_options(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (``| head``); redirect stdout, so that the interpreter's flush at exit does
        # not fail again.
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
            "(source .venv/bin/activate), or install the package there",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        if debug:
            raise
        lines = str(error).strip().splitlines() or [""]
        print(
            f"error: unexpected {type(error).__name__}: {lines[0]}; {DEBUG} shows the traceback",
            file=sys.stderr,
        )
        return 1


def leave(code: int) -> NoReturn:
    """End the process with the exit code of ``run``.

    Where C code called Python code that was interrupted, Python ends the process by the signal, although the interrupt
    was handled.
    """
    if code == EXIT_INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def _no_interrupt_lost() -> Iterator[None]:
    """Interrupt again when an interrupt came within a callback, as imports have, whose exceptions are ignored."""
    before = sys.unraisablehook

    def again(ignored: sys.UnraisableHookArgs) -> None:
        if isinstance(ignored.exc_value, KeyboardInterrupt):
            main = threading.main_thread().ident
            threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGTERM]).start()
        else:
            before(ignored)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def describe_os_error(error: OSError) -> str:
    """Describe an operating-system error in one line: the reason, the place and the remedy."""
    where = f" ({error.filename})" if error.filename else ""
    reason = error.strerror or str(error)
    return f"{reason.lower()}{where}; free some space or choose a writable place"
