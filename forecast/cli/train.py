"""``python -m forecast train``: train one model and score it against persistence."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from forecast.cli.backtest import require_only_from_trial
from forecast.cli.command import spell_options
from forecast.config import PanelOptions, TrainConfig

if TYPE_CHECKING:
    from forecast.model.checkpoint import Checkpoint
    from forecast.model.start import Spanned
    from forecast.model.training import Trainer
    from forecast.prices.panel import Panel
    from forecast.prices.series import Series

EXAMPLES = """\
examples:
  python -m forecast train
  python -m forecast train --source prices.csv --symbol ACME --sequence-length 30 --checkpoint acme.pt
  python -m forecast train --source panel.parquet --symbols all --checkpoint pooled.pt
  python -m forecast train --from-trial artifacts/checkpoints/trial_00007.pt
"""


class TrainOptions(PanelOptions, TrainConfig):
    """Options of this command alone."""

    checkpoint: Path = Field(Path("model.pt"), description="checkpoint file to write")
    from_trial: Path | None = Field(
        None,
        description="checkpoint of a tuning job to train again, on its rows and with its options, up to its best "
        "epoch; no other model option may be given",
    )
    quiet: bool = Field(False, description="print only warnings and errors")
    json_output: bool = Field(False, alias="json", description="print the result as JSON")


def train_command(options: TrainOptions, given: set[str]) -> int:
    """Train a model, score it on validation and test, and write its checkpoint.

    Args:
        options: the command's options.
        given: names of the ``options`` that the user set.
    """
    from pydantic_core import to_jsonable_python
    from rich.console import Console

    from forecast.atomic import require_writable
    from forecast.cli.progress import live_progress
    from forecast.errors import UsageError
    from forecast.model.checkpoint import load_checkpoint, save_checkpoint
    from forecast.model.network import ARCHITECTURES
    from forecast.model.panel import held_out, prepare_panel
    from forecast.model.reproduce import again_of, differing_versions, same_metrics, series_of
    from forecast.model.split import require_rows
    from forecast.model.start import doubts, require_same_start, same_options
    from forecast.model.training import train
    from forecast.pages.describe import (
        evaluations_table,
        left_out_lines,
        panel_lines,
        series_lines,
        sessions_line,
    )
    from forecast.prices.panel import Panel, panel_from_config
    from forecast.prices.source import assumed_symbol, say_on_stderr, series_from_config
    from forecast.scores.metrics import mean_evaluation

    trial = start = None
    apart: frozenset[str] = frozenset()
    if options.from_trial is not None:
        require_only_from_trial(given, {"device", "source"})
        if options.symbols:
            raise UsageError(
                "`symbols` cannot be used with `from_trial`, which trains one symbol; omit one of the two"
            )
        trial = load_checkpoint(options.from_trial)
        if trial.scored_model is not None:
            raise UsageError(
                f"`from_trial` {options.from_trial}: this model was trained for service, with no rows to test it on; "
                "give the scored_pick.pt beside it, or a trial's checkpoint"
            )
        changes = {"device": options.device} if "device" in given else {}
        config = trial.config.model_copy(update=changes)
        require_same_start(trial)
        series: Series | Panel = series_of(
            trial, options.source if "source" in given else None, notify=say_on_stderr
        )
    else:
        config = TrainConfig(**{name: getattr(options, name) for name in TrainConfig.model_fields})
        ARCHITECTURES.find(config.network)
        if config.start_from:
            start = load_checkpoint(config.start_from)
            config = same_options(config, start, given)
        if options.symbols:
            series = panel_from_config(options.symbols, config, notify=say_on_stderr)
            apart = held_out(series, options, config.seed, start.symbols if start else ())
        else:
            series = series_from_config(config, notify=say_on_stderr)
            if line := assumed_symbol(options):
                say_on_stderr(spell_options(line))
    if isinstance(series, Panel):
        described = panel_lines(series)
    else:
        require_rows(len(series), config.sequence_length, config.train_ratio, config.val_ratio_within_train)
        described = series_lines(series, config)
    require_writable(options.checkpoint.absolute().parent)
    silent = options.quiet or options.json_output
    if not silent:
        print(*described, sep="\n")
        if isinstance(series, Panel):
            prepared = prepare_panel(series, config, config.sequence_length, held_out=apart)
            print(*left_out_lines(prepared.left_out), sessions_line(series, prepared), sep="\n")
    # A trial's epochs after its best one were no better, or were never trained.
    until = [member.best_epoch for member in trial.members] if trial else [None] * config.members
    longest = sum(math.ceil(epochs or config.max_epochs) for epochs in until)
    with live_progress("epochs", longest, quiet=silent) as show:
        result = train(
            series,
            config,
            held_out=apart,
            until_epochs=until,
            on_epoch=lambda trainer: show(_progress_of(trainer)),
        )
    trained = again_of(trial, result.checkpoint) if trial else result.checkpoint
    save_checkpoint(trained, options.checkpoint)
    if start:
        own: Sequence[Spanned] = [*trained.symbols.values()] or [trained]
        for doubt in doubts(start, config, series.provenance.interval, own):
            say_on_stderr(f"warning: {doubt}")
    same = same_metrics(trial, trained) if trial else None
    if trial:
        for line in differing_versions(trial, trained):
            say_on_stderr(f"may change the last digits: {line}")
    if options.json_output:
        print(
            json.dumps(
                {
                    "checkpoint": str(options.checkpoint),
                    "validation": to_jsonable_python(result.validation),
                    "test": to_jsonable_python(result.test),
                    "test_without_market": trained.metrics_test_without_market,
                    "test_of_symbols_never_seen": to_jsonable_python(result.unseen),
                    "epochs": sum(result.epochs),
                    "best_epoch": result.checkpoint.best_epoch,
                    "members": [
                        {"seed": member.config.seed, "epochs": epochs, "best_epoch": member.best_epoch}
                        for member, epochs in zip(result.checkpoint.members, result.epochs, strict=True)
                    ],
                    "trial_reproduced": same,
                    "val_loss_best": result.checkpoint.val_loss_best,
                    "seconds": result.seconds,
                    **to_jsonable_python(_data_of(series, trained)),
                }
            )
        )
    elif not options.quiet:
        best = ", ".join(f"{member.best_epoch or 0:.4g}" for member in result.checkpoint.members)
        epochs = " and ".join(f"{each:.4g}" for each in result.epochs)
        print(f"{epochs} epochs in {result.seconds:.1f} s, best epoch {best}")
        if trained.symbols:
            print(f"Means over {len(trained.symbols)} symbols of each metric divided by persistence's:")
        evaluations = {"validation": result.validation, "test": result.test}
        Console().print(evaluations_table(evaluations, relative=bool(trained.symbols)))
        if trained.metrics_test_without_market:
            print(f"Test without the market: {_named(trained.metrics_test_without_market)}")
        if result.unseen:
            unseen = mean_evaluation([*result.unseen.values()]).model
            print(f"Test of {len(result.unseen)} of {len(apart)} held-out symbols: {_named(unseen)}")
        if trial:
            print(
                f"The trial's validation metrics {'were reproduced exactly' if same else 'were not reproduced exactly'}"
            )
        print(f"Written to {options.checkpoint}")
    return 0


def _named(metrics: dict[str, float]) -> str:
    """A panel's metrics in a line."""
    from forecast.scores.metrics import value_text

    return ", ".join(f"{name} {value_text(value, relative=True)}" for name, value in metrics.items())


def _data_of(series: Series | Panel, trained: Checkpoint) -> dict[str, Any]:
    """The fields of the result that say what the model was trained on; of a panel, with each symbol's scores."""
    from forecast.prices.series import Series

    if isinstance(series, Series):
        return {"data": series.provenance, "integrity": series.integrity}
    scores = {
        symbol: {
            "validation": part.metrics_validation,
            "test": part.metrics_test,
            "persistence": part.persistence,
        }
        for symbol, part in trained.symbols.items()
    }
    return {"symbols": scores, "left_out": trained.left_out}


def _progress_of(trainer: Trainer) -> str:
    return f"validation loss {trainer.best_loss:.5f} (best, epoch {trainer.best_epoch:.4g})"
