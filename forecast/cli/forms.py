"""The two forms of each command: ``forecaster tune`` runs what ``python -m tune_jobs.pareto`` runs.

Importing this module costs nothing: ``forecaster --help`` imports little else.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PROGRAM = "forecaster"


class Command(NamedTuple):
    """What ``forecaster NAME`` runs.

    Attributes:
        module: the module that runs.
        help: what the command does, in one line.
        fixed: the module's arguments before those of the user.
        instead: subcommands of the module that the user may give in place of ``fixed``.
    """

    module: str
    help: str
    fixed: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()

    @property
    def long_form(self) -> str:
        """The command in the form of ``python -m``."""
        return " ".join(["python -m", self.module.removesuffix(".__main__"), *self.fixed])


COMMANDS = {
    "tune": Command("tune_jobs.pareto", "search models, and keep the pick of the Pareto front"),
    "train": Command("forecast.__main__", "train one model and score it against persistence", ("train",)),
    "infer": Command("forecast.__main__", "forecast the next values of a window", ("infer",)),
    "backtest": Command(
        "forecast.__main__",
        "train and score repeatedly, at origins that roll forward through the series",
        ("backtest",),
    ),
    "backtest-ray": Command("tune_jobs.backtest", "backtest in parallel, on a Ray cluster"),
    "update": Command(
        "tune_jobs.update", "update the forecasts after a session: score, renew, promote, publish"
    ),
    "models": Command(
        "tune_jobs.models", "inspect the model store and its ledger; promote, roll back, export"
    ),
    "serve": Command(
        "serve_app.__main__",
        "serve models over HTTP (also: serve reload, serve flags)",
        ("run",),
        ("run", "reload", "flags"),
    ),
    "export": Command(
        "forecast.__main__", "write a checkpoint as an ONNX file that runs without torch", ("export",)
    ),
    "completion": Command("forecast.cli.completion", "print the completion script for bash, zsh or fish"),
}

_short = False


def use_short_form() -> None:
    """Say ``forecaster tune`` from now on, because the user typed it."""
    global _short
    _short = True


def is_short_form() -> bool:
    """Whether the user typed ``forecaster``."""
    return _short


def as_typed(text: str) -> str:
    """Spell the commands that a text names in the form that the user typed.

    Args:
        text: names commands in the form of ``python -m``.
    """
    return short_form(text) if _short else text


def short_form(text: str) -> str:
    """Spell the commands of a text as ``forecaster``."""
    return _LONG_FORM.sub(lambda found: _SHORT_FORMS[found[0]], text)


def other_forms(prog: str) -> tuple[str, ...]:
    """The subcommands that the user may give after ``forecaster NAME`` in place of options."""
    return next((each.instead for name, each in COMMANDS.items() if prog == f"{PROGRAM} {name}"), ())


_SHORT_FORMS = {command.long_form: f"{PROGRAM} {name}" for name, command in COMMANDS.items()} | {
    # Without a subcommand, or with another one.
    "python -m serve_app": f"{PROGRAM} serve",
    "python -m forecast": PROGRAM,
}
_LONG_FORM = re.compile(
    "|".join(rf"{re.escape(form)}(?!\w|\.\w)" for form in sorted(_SHORT_FORMS, key=len, reverse=True))
)
