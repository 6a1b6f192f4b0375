"""Command lines built from settings classes, and the place where errors become exit codes.

An option is defined once, as a field of a ``Config``; here it becomes ``--kebab-case``, with the field's description,
choices and default in ``--help``. Its value comes from the command line, else from the file of ``--config``, else from
its environment variable. All commands of the project share this module.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from forecast.cli.forms import as_typed, other_forms
from forecast.cli.interrupts import EXIT_INTERRUPTED, hand_over
from forecast.config import from_environment, kind_of, options_of, parse_settings, variable_of
from forecast.errors import ForecastError, UsageError, spell_parameters
from forecast.names import did_you_mean, split_names
from forecast.version import DISTRIBUTION, installed_version

DEBUG = "--debug"
FLAG: dict[str, Any] = {"action": "store_true"}
ELSEWHERE = (
    "Each option can also come from a file (--config) or from an environment variable: {variable} for {option}, in "
    "every command that has the option. The command line overrides the file, and the file overrides the environment. "
    "Commas separate the values of a list; an empty variable counts as not set."
)
_elsewhere: dict[str, str] = {}
"""The options that the command line did not give, with the place that did: an error names this place."""


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


SETTINGS = "settings of the command"
"""The key under which a parser's defaults hold it with its settings; it is no name of an option."""
TOLD = ("prog", "description", "epilog")
"""The texts of a parser that may name commands."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other error of the project."""

    def __init__(self, **settings: Any) -> None:
        told = {name: as_typed(settings[name]) for name in TOLD if settings.get(name)}
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **settings | told)
        self.add_argument(
            "--version", action=ShowVersion, nargs=0, default=argparse.SUPPRESS, help="show the version"
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the command line, and add the options that its command finds in the file and in the environment."""
        found, rest = self.parse_known_args(args, namespace)
        given: dict[str, Any] = found.__dict__
        parser, settings = given.pop(SETTINGS, (self, None))
        if rest:
            parser.refuse(rest)
        if settings is not None:
            _split_numbers(given, settings)
            _add_from_elsewhere(given, settings)
            if given.pop("print_config", False):
                print(_config_text(parser.prog, settings, given), end="")
                raise SystemExit(0)
        return found

    def refuse(self, rest: Sequence[str]) -> NoReturn:
        """Raise for the arguments that nothing takes, which are all wrong if the first is a mistyped option."""
        name, given = rest[0].partition("=")[0], rest[0]
        if not name.startswith("-"):
            hint = did_you_mean(name, other_forms(self.prog), most=1)
            self.error(f"unexpected argument {name}" + (f"; {hint}" if hint else ""))
        if given == name and len(rest) > 1 and not rest[1].startswith("-"):
            given += f" {rest[1]}"
        hint = did_you_mean(name, self._option_string_actions, most=1)
        self.error(f"unrecognized option {given}" + (f"; {hint}" if hint else ""))

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and exiting."""
        message = message.removeprefix("argument ")
        raise UsageError(f"{message}{'' if message.endswith('?') else ';'} see {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Check a subcommand's name alone: choices of options are checked with the settings, wherever they stand."""
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            hint = did_you_mean(value, action.choices, most=1) or f"choose from {', '.join(action.choices)}"
            raise argparse.ArgumentError(None, f"unknown command {value}; {hint}")


def _split_numbers(given: dict[str, Any], settings: type[BaseModel]) -> None:
    """Let commas separate the numbers of a list, as spaces do. Names are not split: a name may hold a comma."""
    for name, field in options_of(settings).items():
        kind = kind_of(field)
        if name in given and get_origin(kind) in (list, tuple):
            item = get_args(kind)[0]
            if getattr(item, "__origin__", item) in (int, float):  # its type, if it is annotated
                given[name] = split_names(given[name])


def _add_from_elsewhere(given: dict[str, Any], settings: type[BaseModel]) -> None:
    """Add to ``given`` the options of the file that it names, and of the environment."""
    found = {name: (value, variable_of(name)) for name, value in from_environment(settings).items()}
    if (path := given.pop("config", None)) is not None:
        # Imported here so that a command without a file does not wait for PyYAML.
        from forecast.cli.config_file import read_config

        found |= read_config(Path(path), settings)
    _elsewhere.clear()
    for name, (value, place) in found.items():
        if name not in given:
            given[name], _elsewhere[name] = value, place


def _config_text(prog: str, settings: type[BaseModel], given: dict[str, Any]) -> str:
    """Write the options of a command for ``--config``."""
    from forecast.cli.config_file import config_text

    own = {name: value for name, value in given.items() if name in options_of(settings)}
    return config_text(prog, parse_settings(settings, own), own.keys())


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
    for name, text, form in (
        (DEBUG, "show the traceback of an error", FLAG),
        ("--config", "YAML file with options of this command", {"metavar": "PATH"}),
        ("--print-config", "print the options in force as a file for --config, and exit", FLAG),
    ):
        parser.add_argument(name, default=argparse.SUPPRESS, help=text, **form)
    parser.set_defaults(**{SETTINGS: (parser, settings)})
    for title, options in groups_of(settings):
        group = parser.add_argument_group(title)
        for name, field in options.items():
            _add_option(group.add_argument, name, field)
    own = next(iter(options))
    rule = ELSEWHERE.format(variable=variable_of(own), option=option_name(own))
    parser.epilog = "\n".join(filter(None, [parser.epilog, textwrap.fill(rule, 100, break_on_hyphens=False)]))


def groups_of(settings: type[BaseModel]) -> Iterator[tuple[str, dict[str, FieldInfo]]]:
    """Yield the options of each class that ``settings`` inherits from, then its own, with a title."""
    for cls in reversed(settings.__mro__):
        fields = {name: settings.model_fields.get(name) for name in getattr(cls, "__annotations__", {})}
        own = {field.alias or name: field for name, field in fields.items() if field is not None}
        if own:
            doc = (cls.__doc__ or cls.__name__).strip().splitlines()[0]
            yield spell_options(doc.rstrip(".")), own


def _add_option(add: Callable[..., object], name: str, field: FieldInfo) -> None:
    kind = kind_of(field)
    text = spell_options((field.description or "") + _shown_default(field)).replace("%", "%%")
    common: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        plain_flag = field.default is False
        action: Any = "store_true" if plain_flag else argparse.BooleanOptionalAction
        add(option_name(name), action=action, **common)
        return
    if get_origin(kind) is Literal:
        common["choices"] = [str(choice) for choice in get_args(kind)]
    elif get_origin(kind) in (list, tuple):
        common["nargs"] = "*"
        common["metavar"] = _metavar(get_args(kind)[0])
    else:
        common["metavar"] = _metavar(kind)
    add(option_name(name), **common)


def _metavar(kind: Any) -> str:
    return {int: "N", float: "X", Path: "PATH", dt.date: "DATE"}.get(kind, "TEXT")


def _shown_default(field: FieldInfo) -> str:
    if field.is_required():
        return " (required)"
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
    return spell_parameters(message, _as_option)


def _as_option(name: str, value: str | None) -> str:
    if value is None or value == "True":
        return option_name(name)
    return option_name(f"no_{name}") if value == "False" else f"{option_name(name)} {value}"


def _as_given(name: str, value: str | None) -> str:
    """Spell a parameter as the user gave it: as an option, or as the place that gave its value."""
    return _elsewhere[name] if value is None and name in _elsewhere else _as_option(name, value)


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Call ``main`` with the command line and turn its errors into one line and an exit code.

    Codes: 0 done, 1 failure, 2 bad usage, 130 interrupted. ``--debug`` anywhere on the command line
    shows the traceback as well.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = DEBUG in arguments
    _elsewhere.clear()
    if threading.current_thread() is threading.main_thread():
        hand_over()
        # Spot instances and Kubernetes send SIGTERM; it ends a command as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _no_interrupt_lost():
            return main([a for a in arguments if a != DEBUG])
    except ForecastError as error:
        if debug:
            raise
        print(f"error: {as_typed(spell_parameters(str(error), _as_given))}", file=sys.stderr)
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
