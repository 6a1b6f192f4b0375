"""``forecaster``: each of the project's commands under one name."""

from __future__ import annotations

import sys

from forecast.cli.forms import COMMANDS, PROGRAM, use_short_form
from forecast.cli.interrupts import end_at_once
from forecast.version import DISTRIBUTION, installed_version

WIDTH = max(map(len, COMMANDS)) + 2


def help_text() -> str:
    """List the commands."""
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [OPTION ...]",
            "",
            "Tune, train, backtest, update and serve an LSTM price forecaster.",
            "",
            "commands:",
            *(f"  {name:{WIDTH}}{command.help}" for name, command in COMMANDS.items()),
            "",
            "options:",
            f"  {'-h, --help':{WIDTH}}  show this help message and exit",
            f"  {'--version':{WIDTH}}  show the version",
            "",
            f"{PROGRAM} COMMAND --help lists the options of a command.",
        ]
    )


def main() -> int:
    """Run the module of the command that the command line names.

    Returns:
        The exit code where no module runs; a module ends the process itself.
    """
    end_at_once()
    name, *arguments = sys.argv[1:] or [""]
    if name in ("", "-h", "--help"):
        print(help_text())
        return 0 if name else 2
    if name == "--version":
        print(f"{DISTRIBUTION} {installed_version()}")
        return 0
    if name not in COMMANDS:
        # Imported here so that --help does not wait for it.
        from forecast.names import did_you_mean

        hint = did_you_mean(name, COMMANDS, most=1) or f"choose from {', '.join(COMMANDS)};"
        print(f"error: unknown command {name}; {hint} see {PROGRAM} --help", file=sys.stderr)
        return 2
    import runpy

    command = COMMANDS[name]
    fixed = () if arguments[:1] and arguments[0] in command.instead else command.fixed
    sys.argv[1:] = [*fixed, *arguments]
    use_short_form()
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    return 0
