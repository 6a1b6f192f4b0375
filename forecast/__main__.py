"""``python -m forecast``: train one model, forecast with it, backtest a configuration, or export a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from forecast.cli import backtest, export, infer, train
from forecast.cli.command import Parser, add_options, run
from forecast.cli.forms import COMMANDS
from forecast.config import parse_settings


def build_parser() -> Parser:
    """Build the command line from the settings classes."""
    parser = Parser(
        prog="python -m forecast",
        description="Train an LSTM price forecaster, forecast with a trained one, or backtest one.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{train,infer,backtest,export}")
    for name, settings, examples in (
        ("train", train.TrainOptions, train.EXAMPLES),
        ("infer", infer.InferOptions, infer.EXAMPLES),
        ("backtest", backtest.BacktestOptions, backtest.EXAMPLES),
        ("export", export.ExportOptions, export.EXAMPLES),
    ):
        help_text = COMMANDS[name].help
        command = commands.add_parser(
            name,
            help=help_text,
            description=help_text[0].upper() + help_text[1:] + ".",
            epilog=examples,
        )
        if name == "export":
            for argument, meaning in export.ARGUMENTS.items():
                command.add_argument(argument, help=meaning, type=Path)
        add_options(command, settings)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one command and return the exit code."""
    given = vars(build_parser().parse_args(argv))
    command = given.pop("command")
    if command == "train":
        return train.train_command(parse_settings(train.TrainOptions, given), set(given))
    if command == "backtest":
        return backtest.run_backtest(parse_settings(backtest.BacktestOptions, given), set(given))
    if command == "export":
        files = [given.pop(name) for name in export.ARGUMENTS]
        return export.export_command(parse_settings(export.ExportOptions, given), *files)
    return infer.infer_command(parse_settings(infer.InferOptions, given))


if __name__ == "__main__":
    sys.exit(run(main))
