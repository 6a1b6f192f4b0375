"""A job's results for the terminal: the front as a table, the rest as lines."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from forecast.cli.forms import PROGRAM, is_short_form
from forecast.job_files import PICK_FILE, REPORT_FILE, SCORED_FILE
from forecast.pages.describe import WIDTH_DIGITS
from forecast.scores.distribution import MAIN_LEVEL
from forecast.scores.metrics import label, value_text
from tune_jobs.databases import database_of
from tune_jobs.final import FinalModels
from tune_jobs.luck import Luck
from tune_jobs.options import TuneOptions
from tune_jobs.selection import ScoredPoint

SHORT = {"validation": "val.", "test": "test"}
UNLIMITED = 1000
"""Columns that every table has room in."""


def front_table(
    front: Sequence[ScoredPoint],
    picked: ScoredPoint,
    to_beat: dict[str, float],
    part: str,
    width: int = UNLIMITED,
    *,
    relative: bool = False,
) -> Table:
    """Build a table of the front: the pick and the points that noise cannot tell from it are marked.

    Persistence is the last row.

    Args:
        front: the points.
        picked: one of them.
        to_beat: persistence's metrics on the rows of the objectives.
        part: rows the objectives were computed on.
        width: columns of the terminal; if there is no room, hyperparameters are omitted, and then the test scores
            beside the skill.
        relative: whether the scores are those of a panel, ratios to persistence's.
    """
    every = list(dict.fromkeys((part, "test")))
    measure = Console(width=UNLIMITED).measure
    for shown, with_params in ((every, True), (every, False), ([part], False)):
        table = _front_table(front, picked, to_beat, part, shown, with_params=with_params, relative=relative)
        if measure(table).maximum <= width:
            break
    return table


def _front_table(
    front: Sequence[ScoredPoint],
    picked: ScoredPoint,
    to_beat: dict[str, float],
    part: str,
    shown: Sequence[str],
    *,
    with_params: bool,
    relative: bool,
) -> Table:
    """``front_table`` with the objectives' scores on the rows ``shown``, and with or without hyperparameters."""
    title = f"Pareto front: {len(front)} of the trials, * is the pick, ~ cannot be told from it"
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    table.add_column("trial", justify="right", no_wrap=True)
    names = list(picked.objectives)
    for rows in shown:
        above = f"selected\non {SHORT[rows]}" if rows == part else SHORT[rows]
        for name in names:
            table.add_column(f"{above}\n{label(name, relative=relative)}", justify="right", no_wrap=True)
    table.add_column("test\nskill", justify="right", no_wrap=True)
    if with_params:
        table.add_column("window, hidden x layers,\nlearning rate", no_wrap=True)
    for point in front:
        scores = {"validation": point.objectives, "test": point.test.model}
        params = point.params
        model = (
            f"{params['sequence_length']}, {params['hidden_size']} x {params['num_layers']}, "
            f"{params['learning_rate']:.1e}"
        )
        mark = "*" if point is picked else "~" if point.same_as_pick else " "
        table.add_row(
            f"{point.number} {mark}",
            *(value_text(scores[rows][name], relative=relative) for rows in shown for name in names),
            _percent(point.test.skill["MAE"]),
            *([model] if with_params else []),
            style="bold" if point is picked else None,
        )
    persistence = {part: to_beat, "test": picked.test.persistence}
    table.add_section()
    table.add_row(
        "persistence",
        *(value_text(persistence[rows][name], relative=relative) for rows in shown for name in names),
        _percent(0.0),
        *([""] if with_params else []),
    )
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.2f}%"


def search_lines(run: dict[str, Any]) -> list[str]:
    """Describe a run's time; return no line if it had no trial to run."""
    if not run["trials"]:
        return []
    cores = run["core_seconds"] / run["wall_seconds"]
    return [
        f"{run['trials']} trials in {run['wall_seconds']:.0f} s; training took {100 * run['efficiency']:.0f} % of "
        f"{cores:.3g} cores"
    ]


def warm_start_lines(found: dict[str, Any] | None) -> list[str]:
    """Say from where a job started warm, if it did."""
    if found is None:
        return []
    return [
        f"Warm start from {found['directory']} (rows {found['rows']}), configurations tried first: "
        f"{len(found['trials'])} of {found['configurations']}"
    ]


def fold_lines(options: TuneOptions) -> list[str]:
    """Describe the validation folds, if there are several."""
    if options.validation_folds == 1:
        return []
    return [
        f"Scores on validation rows, persistence's too, are means over {options.validation_folds} folds with rolling "
        "origins; a trial's model is that of its last fold"
    ]


def luck_lines(luck: Luck, options: TuneOptions) -> list[str]:
    """Describe what luck can explain of the pick, on the rows that it was chosen on."""
    verdict = "skill" if luck.skill else "consistent with luck"
    trials = "the only trial" if luck.trials == 1 else f"the best of {luck.trials} trials"
    rows = f"{options.objectives_on} rows" + (" of the last fold" if options.validation_folds > 1 else "")
    lines = [
        f"{trials.capitalize()} against persistence: p = {luck.p_value:.2g} (Hansen's SPA test on the {rows}, "
        f"{luck.metric}): {verdict}"
    ]
    if luck.pick_same_as_persistence:
        lines.append("Noise cannot tell the pick from persistence on the rows it was chosen on")
    return lines


def final_lines(final: FinalModels, options: TuneOptions) -> list[str]:
    """Describe the pick's models: their members, files, test scores and intervals, beside persistence's."""
    members, test, relative = len(final.scored.members), final.test, bool(options.symbols)
    models = "one model" if members == 1 else f"{members} models averaged"
    ours, naive = (value_text(scores["MAE"], relative=relative) for scores in (test.model, test.persistence))
    lines = [
        f"The pick as {models}: test MAE {ours} (persistence {naive}), kept as {options.output_dir / SCORED_FILE}"
    ]
    if options.market:
        lines.append(f"The pick {'sees' if final.scored.market else 'does not see'} the market")
    for at in test.intervals:
        if at.level == MAIN_LEVEL:
            width, constant = (
                value_text(each, relative=relative, digits=WIDTH_DIGITS)
                for each in (at.width, at.persistence_width)
            )
            lines.append(
                f"Intervals of {100 * at.level:.0f} %: {100 * at.coverage:.1f} % of the test rows in them, mean width "
                f"{width} (persistence with constant ones: {100 * at.persistence_coverage:.1f} %, {constant})"
            )
    if final.problem:
        lines.append(
            f"The pick was not trained for service ({final.problem}): {options.output_dir / PICK_FILE} is its trial"
        )
    if final.retrained:
        lines.append(
            f"Trained again for service, training rows to {final.served.trained_until}, validation rows to "
            f"{final.served.validated_until}, kept as {options.output_dir / PICK_FILE}"
        )
    return lines


def strategy_line(options: TuneOptions) -> str:
    """Describe how the pick was chosen."""
    return (
        f"{options.strategy}, the smallest within one standard error" if options.one_se else options.strategy
    )


def next_commands(options: TuneOptions) -> dict[str, str]:
    """Return commands for a job's files by purpose; those after ``activate`` need the environment to be active."""
    pick = shlex.quote(str(options.output_dir / PICK_FILE))
    look = {"look": database_of(options).dashboard}
    if is_short_form():
        return {
            "forecast": f"{PROGRAM} infer --checkpoint {pick}",
            "serve": f"{PROGRAM} serve --checkpoint {pick}",
        } | look
    scripts = Path(sys.prefix, "bin")
    activated = sys.prefix == sys.base_prefix or str(scripts) in os.environ.get("PATH", "").split(os.pathsep)
    activate = {} if activated else {"activate": f"source {shlex.quote(_short(scripts / 'activate'))}"}
    own = {
        "forecast": f"python -m forecast infer --checkpoint {pick}",
        "serve": f"serve run serve_app:app checkpoint={pick}",
    }
    return activate | own | look


def _short(path: Path) -> str:
    """Return the path, relative if it lies below the current directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def next_lines(options: TuneOptions) -> list[str]:
    """Return the report and the commands as lines, each after a word for its purpose."""
    report = {"read": str(options.output_dir / REPORT_FILE)} if options.report else {}
    return [f"  {word:<9} {what}" for word, what in (report | next_commands(options)).items()]
