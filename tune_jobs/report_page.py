"""``report.html``: everything a job found, on one page that opens without a network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from forecast.cli.command import option_name
from forecast.model.checkpoint import library_versions
from forecast.model.panel import PreparedPanel
from forecast.model.training import forecast_part
from forecast.model.windows import PreparedSeries
from forecast.pages.describe import intervals_table
from forecast.pages.page import Commands, Grid, Plot, Section, Text, grid_of, write_page
from forecast.pages.plots import calibration_figure, forecast_figure, residual_figure, transform_figure
from forecast.prices.panel import Panel
from forecast.prices.series import Series
from forecast.scores.metrics import label, value_text
from tune_jobs.final import FinalModels
from tune_jobs.luck import Luck
from tune_jobs.options import TuneOptions
from tune_jobs.prepare import Job
from tune_jobs.selection import ScoredPoint
from tune_jobs.space import complete_params
from tune_jobs.study import INTERRUPTED, REASON
from tune_jobs.symbols import METRIC, SymbolScores, symbol_lines, symbols_grid
from tune_jobs.tables import (
    final_lines,
    fold_lines,
    front_table,
    luck_lines,
    next_commands,
    strategy_line,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

FEW = 4
"""Finished trials below which nothing can be said about hyperparameters."""
CAMERA = 1.7
"""Distance of the eye along each axis, in units of the scene's side."""
SHOWN_PARAMS = ("sequence_length", "hidden_size", "num_layers", "dropout", "learning_rate", "batch_size")
"""Hyperparameters with an axis in the parallel coordinates; maximum epochs and patience matter least."""


@dataclass(frozen=True)
class Findings:
    """The contents of a report.

    Attributes:
        job: the job.
        trials: every trial of the study.
        front: the points of the front.
        picked: one of them.
        final: the pick's models.
        luck: what luck can explain of the pick.
        ended: lines about how the job ended and how long it took.
        symbols: the scores of each symbol of a panel.
    """

    job: Job
    trials: Sequence[FrozenTrial]
    front: Sequence[ScoredPoint]
    picked: ScoredPoint
    final: FinalModels
    luck: Luck
    ended: Sequence[str]
    symbols: SymbolScores = field(default_factory=SymbolScores)


def write_report(found: Findings, path: Path) -> None:
    """Write the page.

    Raises:
        OSError: when ``path`` cannot be written; an existing file there is unchanged.
    """
    prices, options = found.job.prices, found.job.options
    complete = [trial for trial in found.trials if trial.state == TrialState.COMPLETE]
    introduction = [
        f"{len(complete)} {'trial' if len(complete) == 1 else 'trials'} finished; the pick by "
        f"{strategy_line(options)}: trial {found.picked.number}.",
        *final_lines(found.final, options),
        *luck_lines(found.luck, options),
        *symbol_lines(found.symbols, len(found.final.scored.left_out)),
    ]
    marked = next(i for i, point in enumerate(found.front) if point is found.picked)
    table = front_table(
        found.front, found.picked, found.job.to_beat, options.objectives_on, relative=bool(options.symbols)
    )
    sections = [
        Section(
            "The Pareto front",
            [
                Text(
                    "The trials that no other trial beats; the last row is persistence, which repeats the last price. "
                    "* is the pick; ~ marks the trials that noise cannot tell from it: the difference by "
                    f"{options.strategy} is within one standard error."
                ),
                Text(
                    f"The trials are selected on the {options.objectives_on} rows, so their scores there are better "
                    "than those to expect on new data."
                ),
                *(Text(line) for line in fold_lines(options)),
                grid_of(table, marked),
                *_fronts(found, complete),
            ],
        ),
        Section(
            "The search",
            [
                *(Text(line) for line in found.ended),
                Plot(
                    _history(found, complete),
                    "Objectives of each finished trial by finishing time, the best so far, and persistence",
                    height=220 * len(options.objectives) + 60,
                ),
                *_importances(found, complete),
                *_failures(found.trials),
            ],
        ),
        Section("The pick on test rows", _on_test(found)),
        Section("Data", _data(found)),
        Section("Next steps", [Commands(list(next_commands(options).values()))]),
        Section("Options and versions", [_settings(options)]),
    ]
    write_page(path, f"{prices.symbol} {prices.feature}: tuning report", introduction, sections)


def _study(found: Findings, trials: Sequence[FrozenTrial]) -> optuna.Study:
    """Put the finished trials into a study in memory: the job's database is not read again."""
    names = found.job.options.objective_names
    study = optuna.create_study(directions=["minimize"] * len(names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(names)
    study.add_trials(trials)
    return study


def _fronts(found: Findings, trials: Sequence[FrozenTrial]) -> list[Plot]:
    """Plot the front among all finished trials, in up to three dimensions and as parallel coordinates."""
    names = found.job.options.objective_names
    numbers = {point.number for point in found.front}
    plots = []
    if len(names) > 1:
        shown = names[:3]
        figure = _front_figure(found, [trial for trial in trials if trial.number not in numbers], shown)
        says = f"{', '.join(shown)} of every finished trial: the front, the pick and persistence are marked"
        plots.append(Plot(figure, says, height=560))
    return [*plots, _parallel_coordinates(trials, names, numbers)]


def _front_figure(found: Findings, others: Sequence[FrozenTrial], names: Sequence[str]) -> go.Figure:
    """Plot trials by two or three objectives; Optuna's own plot has neither the pick nor persistence."""
    import plotly.graph_objects as go

    kind = go.Scatter3d if len(names) == 3 else go.Scatter
    scale = 1 if len(names) == 3 else 2
    front = [point for point in found.front if point is not found.picked]
    groups: Any = (
        ("trial", "soft", 3, [trial.number for trial in others], [trial.values for trial in others]),
        ("front", "forecast", 5, [p.number for p in front], [list(p.objectives.values()) for p in front]),
        ("pick", "pick", 7, [found.picked.number], [list(found.picked.objectives.values())]),
        ("persistence", "persistence", 6, [], [[found.job.to_beat[name] for name in names]]),
    )
    figure = go.Figure()
    for title, colour, size, labels, values in groups:
        places = np.array(values, dtype=float).reshape(-1, len(values[0]) if values else len(names)).T
        coordinates = dict(zip("xyz", places[: len(names)], strict=False))
        marker = {"size": size * scale, "symbol": "diamond" if title == "persistence" else "circle"}
        text = [f"trial {number}" for number in labels] or [title]
        figure.add_trace(
            kind(mode="markers", name=title, text=text, meta=colour, marker=marker, **coordinates)
        )
    titled: dict[str, Any] = {
        f"{letter}axis": {"title": {"text": name}} for letter, name in zip("xyz", names, strict=False)
    }
    if len(names) == 3:
        # As close as a narrow screen allows without cutting off the axes' numbers.
        titled = {"scene": {**titled, "camera": {"eye": dict.fromkeys("xyz", CAMERA)}}}
        figure.update_layout(margin={"l": 0, "r": 0, "b": 0})
    figure.update_layout(titled)
    # Trials far from the front would shrink it to a dot.
    figure.update_layout(**_near_the_front(found, [trial.values for trial in others], names))
    return figure


def _parallel_coordinates(trials: Sequence[FrozenTrial], names: Sequence[str], front: set[int]) -> Plot:
    import plotly.graph_objects as go

    params = [complete_params(trial.params) for trial in trials]
    dimensions: list[dict[str, Any]] = [
        {"label": name, "values": [trial.values[i] for trial in trials]} for i, name in enumerate(names)
    ]
    for name in SHOWN_PARAMS:
        values = np.array([found[name] for found in params], dtype=float)
        log = name == "learning_rate"
        label = "log10 learning rate" if log else name.replace("_", " ")
        dimensions.append({"label": label, "values": np.log10(values) if log else values})
    line = {
        "color": [float(trial.number in front) for trial in trials],
        "cmin": 0,
        "cmax": 1,
    }
    figure = go.Figure(go.Parcoords(dimensions=dimensions, line=line, meta="forecast"))
    figure.update_layout(margin={"l": 60, "r": 40, "t": 60, "b": 20})
    says = "Objectives and hyperparameters of every finished trial as parallel coordinates, the front in blue"
    return Plot(figure, says, least_width=110 * len(dimensions))


def _near_the_front(
    found: Findings, others: Sequence[Sequence[float]], names: Sequence[str]
) -> dict[str, Any]:
    """Choose axes that show the front, persistence and the better half of the trials; zooming out shows the rest."""
    front = np.array([list(point.objectives.values())[: len(names)] for point in found.front])
    seen = np.vstack([front, [found.job.to_beat[name] for name in names]])
    low, high = seen.min(axis=0), seen.max(axis=0)
    if others:
        better = np.median(np.array(others)[:, : len(names)], axis=0)
        low, high = np.minimum(low, better), np.maximum(high, better)
    margin = 0.05 * np.maximum(high - low, 1e-9 * np.abs(high))
    axes = {
        f"{letter}axis": {"range": [low[i] - margin[i], high[i] + margin[i]]}
        for i, letter in enumerate("xyz"[: len(names)])
    }
    return {"scene": axes} if len(names) == 3 else axes


def _history(found: Findings, trials: Sequence[FrozenTrial]) -> go.Figure:
    """Plot each objective by its trial's finishing time, the best so far, and persistence's."""
    from plotly.subplots import make_subplots

    names, relative = found.job.options.objective_names, bool(found.job.options.symbols)
    ordered = sorted(trials, key=lambda trial: trial.datetime_complete or pd.Timestamp(0))
    ends = [trial.datetime_complete for trial in ordered]
    hover = [f"trial {trial.number}" for trial in ordered]
    figure = make_subplots(rows=len(names), cols=1, shared_xaxes=True, vertical_spacing=0.04)
    for i, name in enumerate(names):
        values = np.array([trial.values[i] for trial in ordered])
        looks: dict[str, Any] = {"row": i + 1, "col": 1, "showlegend": not i}
        figure.add_scatter(
            x=ends,
            y=values,
            mode="markers",
            name="trial",
            text=hover,
            meta="soft",
            marker={"size": 6},
            **looks,
        )
        best = np.minimum.accumulate(values)
        line = {"shape": "hv", "width": 2}
        figure.add_scatter(
            x=ends, y=best, mode="lines", name="best so far", line=line, meta="forecast", **looks
        )
        figure.add_scatter(
            x=[ends[0], ends[-1]],
            y=[found.job.to_beat[name]] * 2,
            mode="lines",
            name="persistence",
            line={"dash": "dot", "width": 1.5},
            meta="persistence",
            **looks,
        )
        top = max(float(np.quantile(values, 0.9)), found.job.to_beat[name])
        low = min(float(values.min()), found.job.to_beat[name])
        margin = 0.08 * max(top - low, 1e-9 * abs(top))
        figure.update_yaxes(
            title_text=label(name, relative=relative), range=[low - margin, top + margin], row=i + 1
        )
    return figure


def _importances(found: Findings, trials: Sequence[FrozenTrial]) -> list[Plot | Text]:
    """Plot how much of each objective's variation each hyperparameter explains, by Optuna."""
    from optuna.visualization import plot_param_importances

    if len(trials) < FEW:
        return [Text(f"Hyperparameter importance needs at least {FEW} finished trials.")]
    values = np.array([trial.values for trial in trials])
    if (np.ptp(values, axis=0) == 0).any() or all(trial.params == trials[0].params for trial in trials):
        return [Text("All trials have the same objective or hyperparameters: importance cannot be computed.")]
    try:
        with warnings.catch_warnings():
            # One warns that smaller is assumed to be better, which holds here.
            warnings.simplefilter("ignore")
            figure = plot_param_importances(_study(found, trials))
    except (RuntimeError, ValueError) as error:
        return [Text(f"Hyperparameter importance could not be computed: {error}")]
    figure.update_layout(title=None, barmode="group", yaxis_title=None, xaxis_title="importance")
    return [
        Text(
            "Importance of the hyperparameters for each objective (PED-ANOVA, Watanabe et al. 2023); if every "
            "trial lands near persistence, the importance is mostly noise. Dropout is compared among models of "
            "several layers only."
        ),
        Plot(figure, "Importance of each hyperparameter for each objective"),
    ]


def _failures(trials: Sequence[FrozenTrial]) -> list[Text | Grid]:
    failed = [
        trial
        for trial in trials
        if trial.state == TrialState.FAIL and trial.user_attrs.get(REASON) != INTERRUPTED
    ]
    if not failed:
        return []
    rows = [[str(trial.number), str(trial.user_attrs.get(REASON, "unknown"))] for trial in failed]
    return [Text("Trials that failed:"), Grid(["trial", "reason"], rows, text_columns=[0, 1])]


def _on_test(found: Findings) -> list[Text | Plot | Grid]:
    match found.job.prices, found.job.prepared:
        case Panel() as panel, PreparedPanel() as prepared:
            return _of_symbols(found, panel, prepared)
        case Series() as series, PreparedSeries() as prepared:
            return _forecasts(found, series, prepared)
    raise AssertionError("prices are prepared as what they are")


def _what_the_search_saw(found: Findings) -> str:
    if found.job.options.objectives_on == "validation":
        return "The search has not seen these rows."
    return "The search has seen these rows: the scores do not estimate performance on new data."


def _of_symbols(found: Findings, panel: Panel, prepared: PreparedPanel) -> list[Text | Plot | Grid]:
    """Show the scores of each symbol, and the forecasts of the best and the worst."""
    checkpoint, length = found.final.scored, found.final.scored.config.sequence_length
    rated = [
        (score, ratio) for score in found.symbols.seen if (ratio := score.ratio("persistence")) is not None
    ]
    rated.sort(key=lambda pair: pair[1])
    blocks: list[Text | Plot | Grid] = [
        Text(f"A click on a title sorts the symbols. {_what_the_search_saw(found)}"),
        symbols_grid(found.symbols),
    ]
    ends = (("best", rated[0]), ("worst", rated[-1])) if rated else ()
    for which, (score, ratio) in ends:
        own, series = prepared.series[score.symbol], panel.series[score.symbol]
        rows = own.rows("test", length)
        dates = series.timeline.local(series.dates[own.target_rows("test", length)])
        forecasts = forecast_part(checkpoint, own, "test")
        blocks += [
            Text(
                f"The {which} by {METRIC} relative to persistence's: {score.symbol}, "
                f"{value_text(ratio, relative=True)}."
            ),
            Plot(
                forecast_figure(dates, rows, forecasts),
                f"Prices of {score.symbol}, the pick's forecasts with their interval, and persistence, by date",
                height=480,
            ),
        ]
    if prepared.left_out:
        blocks += [
            Text("Symbols that were left out:"),
            Grid(["symbol", "reason"], list(prepared.left_out.items()), text_columns=[0, 1], explored=True),
        ]
    return blocks


def _forecasts(found: Findings, series: Series, prepared: PreparedSeries) -> list[Text | Plot | Grid]:
    """Show the pick's forecasts, residuals and intervals on the test rows."""
    checkpoint, timeline = found.final.scored, series.timeline
    length = checkpoint.config.sequence_length
    rows = prepared.rows("test", length)
    forecasts = forecast_part(checkpoint, prepared, "test")
    dates = timeline.local(series.dates[prepared.target_rows("test", length)])
    tables: list[Text | Plot | Grid] = []
    if found.final.test.intervals:
        tables = [
            Text(
                "Share of test rows inside the intervals; the intervals of persistence have one width, "
                "from all earlier changes."
            ),
            grid_of(intervals_table([found.final.test])),
            Plot(
                calibration_figure(rows.actual, {"model": forecasts, "persistence": rows.baseline}),
                "Share of prices below each forecast quantile, for the model and for persistence",
            ),
            Plot(
                transform_figure(rows.actual, forecasts),
                "Histogram of probability integral transforms",
                height=300,
            ),
        ]
    return [
        Text(
            f"One {timeline.unit} ahead, each forecast made from the {timeline.unit}s before it. "
            f"{_what_the_search_saw(found)}"
        ),
        Plot(
            forecast_figure(dates, rows, forecasts),
            "Actual prices, the pick's forecasts with their interval, and persistence, by date",
            height=480,
        ),
        Text("Residuals, actual price minus forecast:"),
        Plot(
            residual_figure(dates, rows, forecasts),
            "Residuals by date and their histogram, with the residuals of persistence for comparison",
        ),
        *tables,
    ]


def _data(found: Findings) -> list[Text | Grid]:
    where, report = found.job.prices.provenance, found.job.prices.integrity
    rules = [
        [rule.rule.replace("_", " "), str(rule.found), rule.action if rule.found else "", rule.detail]
        for rule in report.rules
    ]
    origin = [
        ["source", where.source],
        ["requested", where.requested],
        *([["fallback because", where.fallback]] if where.fallback else []),
        ["dates", f"{where.first_date} to {where.last_date}"],
        ["bars", f"of {where.interval}, calendar {where.calendar}: {where.calendar_fit}"],
        ["rows", f"{report.rows_in} read, {where.rows} used"],
        *([["retrieved on", where.retrieved]] if where.retrieved else []),
        ["SHA-256 of the rows", where.sha256],
    ]
    return [
        Text(found.job.split.strip()),
        Grid(["origin", ""], origin, text_columns=[0, 1]),
        Text("Integrity: what each rule found, and the action taken."),
        Grid(["rule", "found", "action", "detail"], rules, text_columns=[0, 2, 3]),
    ]


def _settings(options: TuneOptions) -> Grid:
    values = options.model_dump(mode="json")
    versions = {**library_versions(), "optuna": optuna.__version__}
    given = {
        option_name(TuneOptions.model_fields[name].alias or name): value for name, value in values.items()
    }
    rows = [[name, "" if value is None else _listed(value)] for name, value in (given | versions).items()]
    return Grid(["option or version", "value"], rows, text_columns=[0, 1])


def _listed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
