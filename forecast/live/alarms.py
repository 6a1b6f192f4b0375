"""Alarms: what a person should know about a model in production, and whether it is a reason to train it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecast.live.evidence import CHAMPION, PLACES, SKILL
from forecast.live.ledger import Ledger
from forecast.scores.sequential import (
    BINS,
    Evidence,
    calibration_alarm,
    challenger_evidence,
    skill_alarm,
    threshold,
)

Array = NDArray[np.float64]

FALSE_ALARMS = 0.05
"""Largest share of healthy years with a false alarm: half of it for calibration, which finds most faults first, and
half for the baselines together."""
BASELINES = ("persistence", "EWMA", "GARCH")
"""The baselines that a model must not be worse than."""
CALIBRATION, OLD, SILENT = "calibration", "model_old", "source_silent"
WORSE = "worse_than_"
"""Names of alarms; the last is followed by that of a baseline."""


@dataclass(frozen=True)
class Alarm:
    """An alarm that is on.

    Attributes:
        alarm: its name.
        text: what is wrong, in one line.
        renew: whether training the model again may help.
        evidence: its evidence, which has reached its threshold; None for alarms that need none.
    """

    alarm: str
    text: str
    renew: bool
    evidence: float | None = None


def record_alarms(sessions: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """The alarms of a model's live record, which at most a share ``FALSE_ALARMS`` of healthy years have.

    Args:
        sessions: the rows of the ledger's sessions of one model, oldest first, since it was promoted.
    """
    known = [row["evidence"] for row in sessions if row["evidence"]]
    if not known:
        return []
    found = []
    places = calibration_evidence(known)
    if places.values.max() >= calibration_threshold():
        found.append(
            Alarm(
                CALIBRATION,
                f"the prices of {len(known)} sessions do not fall into the intervals as often as the forecasts say",
                True,
                float(places.values.max()),
            )
        )
    for name in BASELINES:
        ratios = np.array([each[SKILL][name] for each in known if name in each[SKILL]])
        if len(ratios):
            evidence = skill_alarm(np.arange(len(ratios)), ratios, np.ones(len(ratios)))
            if evidence.values.max() >= skill_threshold():
                found.append(
                    Alarm(
                        WORSE + name,
                        f"the forecasts of {len(ratios)} sessions are worse than those of {name}",
                        True,
                        float(evidence.values.max()),
                    )
                )
    return found


def calibration_threshold() -> float:
    """Evidence at which the alarm of calibration goes off."""
    return threshold(FALSE_ALARMS / 2)


def skill_threshold() -> float:
    """Evidence at which the alarm of any baseline goes off."""
    return threshold(FALSE_ALARMS / 2, len(BASELINES))


def calibration_evidence(known: Sequence[Mapping[str, Any]]) -> Evidence:
    """The evidence of several sessions that forecasts are not calibrated."""
    counts = [len(each[PLACES]) for each in known]
    places = np.array([place for each in known for place in each[PLACES]])
    return calibration_alarm(np.repeat(np.arange(len(known)), counts), (places + 0.5) / BINS)


def shadow_evidence(sessions: Sequence[Mapping[str, Any]]) -> float:
    """The evidence that a shadow is better than the champion; one without sessions that both forecast."""
    known = [row["evidence"][SKILL] for row in sessions if row["evidence"]]
    ratios = np.array([skill[CHAMPION] for skill in known if CHAMPION in skill])
    if not len(ratios):
        return 1.0
    return float(challenger_evidence(np.arange(len(ratios)), ratios, np.ones(len(ratios))).values.max())


def old(age: int | None, most: int) -> list[Alarm]:
    """The alarm of a model whose last row is more than so many sessions old, if it is on."""
    if age is None or age <= most:
        return []
    return [
        Alarm(
            OLD, f"the model has seen no price of the last {age} sessions; at most {most} are allowed", True
        )
    ]


def silent(missing: int | None, most: int) -> list[Alarm]:
    """The alarm of a source that lacks the prices of more than so many sessions, if it is on."""
    if missing is None or missing <= most:
        return []
    return [
        Alarm(
            SILENT,
            f"the source has no price of the last {missing} sessions; at most {most} may be late",
            False,
        )
    ]


def alarms_on(ledger: Ledger, name: str) -> dict[str, dict[str, Any]]:
    """The events of the alarms that are on, by the alarm's name."""
    on: dict[str, dict[str, Any]] = {}
    for event in reversed(ledger.events(name, "alarm", "alarm_over")):
        if event["kind"] == "alarm":
            on[event["details"]["alarm"]] = event
        else:
            on.pop(event["details"]["alarm"], None)
    return on
