"""``forecaster completion``: a script with which a shell completes commands, options, choices and files."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forecast.cli.command import Parser, leave, run
from forecast.cli.forms import COMMANDS, PROGRAM

SHELLS = ("bash", "zsh", "fish")
PLACES = ("source", "checkpoint", "ledger", "storage_path")
"""Options whose text may be a path."""
WHERE = f"""\
where to put it:
  {PROGRAM} completion bash > ~/.local/share/bash-completion/completions/{PROGRAM}
  {PROGRAM} completion zsh > ~/.zfunc/_{PROGRAM}     (with `fpath+=~/.zfunc` before compinit in ~/.zshrc)
  {PROGRAM} completion fish > ~/.config/fish/completions/{PROGRAM}.fish
"""


def build_parser() -> Parser:
    """Build the command line."""
    parser = Parser(
        prog=f"{PROGRAM} completion",
        description="Print a script with which the shell completes commands, options, choices and files.",
        epilog=WHERE,
    )
    commands = parser.add_subparsers(dest="shell", required=True, metavar=f"{{{','.join(SHELLS)}}}")
    for shell in SHELLS:
        commands.add_parser(shell, help=f"for {shell}")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print the script of a shell."""
    shell = build_parser().parse_args(argv).shell
    import shtab

    script = shtab.complete(whole_parser(), shell)
    # shtab's advice names other places than this command's help.
    print(
        re.sub(
            r"^# Usage:\n(#.*\n)+",
            f"# `{PROGRAM} completion --help` says where to put it.\n",
            script,
            flags=re.M,
        )
    )
    return 0


def whole_parser() -> Parser:
    """Build one parser of all commands."""
    whole = Parser(prog=PROGRAM)
    commands = whole.add_subparsers(dest="command")
    for name, command in COMMANDS.items():
        own = importlib.import_module(command.module).build_parser()
        parser = _subcommand(own, command.fixed)
        parser.description = command.help
        if command.instead:
            others = parser.add_subparsers()
            for other in (each for each in command.instead if each not in command.fixed):
                _adopt(others, other, _subcommand(own, (other,)))
        _adopt(commands, name, parser)
        _complete_files(parser)
    return whole


def _subcommand(parser: Any, names: Sequence[str]) -> Any:
    """The parser of a subcommand, or the parser itself."""
    for name in names:
        (parser,) = (action.choices[name] for action in parser._actions if _has_subcommands(action))
    return parser


def _has_subcommands(action: argparse.Action) -> bool:
    return isinstance(action, argparse._SubParsersAction)


def _adopt(commands: Any, name: str, parser: Parser) -> None:
    """Make a parser that there is a subcommand."""
    commands.add_parser(name, help=parser.description)
    commands.choices[name] = parser


def _complete_files(parser: Parser) -> None:
    import shtab

    for action in parser._actions:
        if _has_subcommands(action):
            for each in dict(action.choices or {}).values():
                _complete_files(each)
        elif action.metavar == "PATH" or action.type is Path or action.dest in PLACES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


if __name__ == "__main__":
    leave(run(main))
