"""``report.html`` in a real browser, without a network."""

import datetime as dt
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import plotly.graph_objects as go
import pytest
from browser import Watched
from markupsafe import escape
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console

from forecast.model.windows import prepare
from forecast.pages.page import Commands, Plot, Section, write_page
from tune_jobs.final import FinalModels
from tune_jobs.luck import Luck
from tune_jobs.options import TuneOptions
from tune_jobs.prepare import Job
from tune_jobs.report_page import Findings, write_report
from tune_jobs.selection import ScoredPoint
from tune_jobs.tables import next_commands

SPACE = {
    "sequence_length": IntDistribution(20, 60, step=10),
    "hidden_size": CategoricalDistribution((8, 16)),
    "num_layers": IntDistribution(1, 2),
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "batch_size": CategoricalDistribution((64, 128)),
    "max_epochs": IntDistribution(30, 60, step=30),
    "patience": IntDistribution(10, 25, step=5),
}
STARTED = dt.datetime(2026, 1, 1)
RULE = "<script>alert('a file may be called this')</script>"


def trials_of(objectives):
    """Build 64 finished trials of that many objectives, the best one last, and a failed one."""
    trials = []
    for number in range(64):
        params = {
            "sequence_length": 20 + 10 * (number % 5),
            "hidden_size": 8 * (1 + number % 2),
            "num_layers": 1 + number // 3 % 2,
            "learning_rate": 1e-4 * 1.07**number,
            "batch_size": 64 * (1 + number // 5 % 2),
            "max_epochs": 30 * (1 + number // 7 % 2),
            "patience": 10 + 5 * (number % 4),
        }
        trial = create_trial(
            params=params,
            distributions=SPACE,
            values=[(position + 2) * (100 - number) for position in range(objectives)],
        )
        trial.number, trial.datetime_complete = number, STARTED + dt.timedelta(seconds=number)
        trials.append(trial)
    reason = {"reason": "TrainingError: diverged"}
    failed = create_trial(state=TrialState.FAIL, user_attrs=reason)
    failed.number = len(trials)
    return [*trials, failed]


def findings(tiny_result, snapshot, count=3, **options):
    options = TuneOptions(source="snapshot", **options)
    trials = trials_of(count)
    best = trials[-2]
    picked = ScoredPoint(
        best.number,
        dict(zip(options.objective_names, best.values, strict=True)),
        best.params,
        tiny_result.checkpoint,
        Path("trial.pt"),
        tiny_result.test,
        same_as_pick=True,
    )
    quiet = Console(quiet=True)
    job = Job(
        options=options,
        prices=replace(snapshot, provenance=replace(snapshot.provenance, fallback=RULE)),
        split="train 1347 rows",
        prepared=prepare(snapshot, tiny_result.checkpoint.config),
        persistence={
            "validation": {name: 70.0 * (place + 2) for place, name in enumerate(options.objective_names)}
        },
        console=quiet,
        errors=quiet,
    )
    return Findings(
        job=job,
        trials=trials,
        front=[picked],
        picked=picked,
        final=FinalModels(tiny_result.checkpoint, tiny_result.test, tiny_result.checkpoint),
        luck=Luck(frozenset({best.number}), True, "MAPE", 64, 0.43),
        ended=["64 trials in 180 s; training took 93 % of 2 cores"],
    )


@pytest.fixture(scope="module")
def report(tiny_result, snapshot, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(findings(tiny_result, snapshot), path)
    return path


def test_scores_of_a_panel_are_ratios_without_a_unit(tiny_result, snapshot, tmp_path):
    write_report(findings(tiny_result, snapshot, symbols=("all",)), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "MAPE" in text
    assert "MAPE %" not in text
    assert f"test MAE {tiny_result.test.model['MAE']:.4f}" in text


@pytest.mark.parametrize("width", [390, 1280])
def test_it_opens_without_a_network_with_every_plot_drawn_and_nothing_cut_off(browser, report, width):
    page = Watched(browser, width, offline=True)
    page.tab.goto(report.as_uri())
    plots = page.tab.locator(".plot")
    drawn = page.tab.locator(".plot .main-svg:first-child")
    drawn.last.wait_for()
    assert drawn.count() == plots.count() == 8
    assert page.tab.locator(".plot canvas").count() > 0
    assert page.cut_off() == 0
    if width == 1280:  # on a phone, tables and parallel coordinates scroll in their own boxes
        hidden = "[...document.querySelectorAll('.scroll')].map(box => box.scrollWidth - box.clientWidth)"
        assert max(page.tab.evaluate(hidden)) <= 0
    assert page.errors == []
    assert page.hosts == {""}
    page.context.close()


def test_it_takes_the_readers_colours_also_when_they_change(browser, report):
    page = Watched(browser, scheme="dark")
    page.tab.goto(report.as_uri())
    ink = "document.querySelector('.plot')._fullLayout.font.color"
    assert page.tab.evaluate(ink) == "#e4e8ee"
    page.tab.emulate_media(color_scheme="light")
    page.tab.wait_for_function(f"() => {ink} === '#1c2128'")
    page.context.close()


def test_a_report_of_64_samples_is_under_6_mb(report):
    assert report.stat().st_size < 6e6


def test_it_says_what_the_terminal_says_and_what_was_done_to_the_data(report, tiny_result, snapshot):
    text = report.read_text()
    for name in ("MAE", "RMSE", "MAPE"):
        for scores in (tiny_result.test.model, tiny_result.test.persistence):
            assert f"<td class=number>{scores[name]:,.6g}</td>" in text
    assert snapshot.provenance.sha256 in text
    assert "TrainingError: diverged" in text
    assert "partial last day" in text
    assert "p = 0.43 (Hansen" in text
    assert "consistent with luck" in text
    assert "Noise cannot tell the pick from persistence" in text
    assert "selected\non val.\nMAE" in text
    for command in next_commands(TuneOptions()).values():
        assert str(escape(command)) in text


def test_commands_for_a_shell_that_has_not_got_them_begin_with_the_environments_activation(
    monkeypatch, tmp_path
):
    scripts = Path(sys.executable).parent
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"/usr/bin:{scripts}")
    ready = next_commands(TuneOptions())
    monkeypatch.setenv("PATH", "/usr/bin")
    assert next_commands(TuneOptions()) == {"activate": f"source {scripts / 'activate'}"} | ready
    monkeypatch.chdir(Path(sys.prefix).parent)
    assert next_commands(TuneOptions())["activate"] == f"source {Path(sys.prefix).name}/bin/activate"


def test_text_from_elsewhere_is_shown_and_not_run(report, tmp_path):
    text = report.read_text()
    assert RULE not in text
    assert str(escape(RULE)) in text
    place = Plot(go.Figure(go.Scatter(name=RULE)), RULE)
    write_page(tmp_path / "page.html", RULE, [RULE], [Section(RULE, [place, Commands([RULE])])])
    assert "<script>alert" not in (tmp_path / "page.html").read_text()


def test_trials_that_do_not_differ_are_said_to_tell_nothing(tiny_result, snapshot, tmp_path):
    found = findings(tiny_result, snapshot)
    alike = [
        create_trial(params=trial.params, distributions=SPACE, values=[1.0, 2.0, 3.0])
        for trial in found.trials[:-1]
    ]
    for number, trial in enumerate(alike):
        trial.number, trial.datetime_complete = number, STARTED
    write_report(replace(found, trials=alike), tmp_path / "report.html")
    assert "importance cannot be computed" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("objectives", [["crps"], ["mae", "crps"], ["mae", "rmse", "mape", "crps"]])
def test_any_number_of_objectives_has_its_report(tiny_result, snapshot, tmp_path, objectives):
    path = tmp_path / "report.html"
    found = findings(
        tiny_result, snapshot, len(objectives), objectives=objectives, strategy=f"min_{objectives[0]}"
    )
    write_report(found, path)
    figures = [
        json.loads(text)
        for text in re.findall(r"<script type=.application/json.>(.*?)</script>", path.read_text())
    ]
    kinds = {trace["type"] for figure in figures for trace in figure["data"]}
    assert ("scatter3d" in kinds) == (len(objectives) > 2)
    assert "parcoords" in kinds
