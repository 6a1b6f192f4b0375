"""The files that a tuning job leaves in its output directory, which other commands read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PICK_FILE = "best_pareto_lstm.pt"
"""The pick, trained for service."""
SCORED_FILE = "scored_pick.pt"
"""The pick as it was scored on the test rows."""
SUMMARY_FILE = "summary.json"
FRONT_FILE = "pareto_trials.csv"
SYMBOLS_FILE = "symbols.csv"
REPORT_FILE = "report.html"

TIME_BUDGET = "time budget"
"""The ``stopped_by`` of a search that ended before its last trial, as planned."""
PICK_INTERRUPTED = "interrupted; continue with --resume"
"""The ``problem`` of a pick whose training was ended by a signal."""


def is_complete(summary: Mapping[str, Any]) -> bool:
    """Whether a summary's job ended as planned, with a pick."""
    pick, planned = summary["pick"], summary["stopped_by"] in (None, TIME_BUDGET)
    return planned and pick is not None and pick["problem"] != PICK_INTERRUPTED
