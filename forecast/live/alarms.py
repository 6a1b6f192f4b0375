"""Alarms: problems of a model in production; some are a reason to train it again."""

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
"""Largest share of healthy years with a false alarm: calibration, which finds most faults first, has one half, and the
baselines together have the other half."""
BASELINES = ("persistence", "EWMA", "GARCH")
"""The baselines that a model must not be worse than."""
CALIBRATION, OLD, SILENT = "calibration", "model_old", "source_silent"
WORSE = "worse_than_"
"""Names of alarms; a baseline's name follows the last one."""


@dataclass(frozen=True)
class Alarm:
    """An alarm that is on.

    Attributes:
        alarm: name of the alarm.
        text: description of the problem, in one line.
        renew: whether training the model again may help.
        evidence: the evidence, which has reached the threshold; None for an alarm that needs none.
    """

    alarm: str
    text: str
    renew: bool
    evidence: float | None = None


def record_alarms(sessions: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """The alarms of a model's live record; at most a share ``FALSE_ALARMS`` of healthy years has a false one.

    Args:
        sessions: rows of the ledger's table ``sessions`` for one model since its promotion, oldest first.
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
                f"the prices of {len(known)} sessions do not fall into the intervals as often as the forecasts state",
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
    """The evidence at which the alarm of calibration begins."""
    return threshold(FALSE_ALARMS / 2)


def skill_threshold() -> float:
    """The evidence at which the alarm of a baseline begins."""
    return threshold(FALSE_ALARMS / 2, len(BASELINES))


def calibration_evidence(known: Sequence[Mapping[str, Any]]) -> Evidence:
    """The evidence from several sessions that forecasts are not calibrated."""
    counts = [len(each[PLACES]) for each in known]
    places = np.array([place for each in known for place in each[PLACES]])
    return calibration_alarm(np.repeat(np.arange(len(known)), counts), (places + 0.5) / BINS)


def shadow_evidence(sessions: Sequence[Mapping[str, Any]]) -> float:
    """The evidence that a shadow is better than the champion; 1.0 if no session has forecasts of both."""
    known = [row["evidence"][SKILL] for row in sessions if row["evidence"]]
    ratios = np.array([skill[CHAMPION] for skill in known if CHAMPION in skill])
    if not len(ratios):
        return 1.0
    return float(challenger_evidence(np.arange(len(ratios)), ratios, np.ones(len(ratios))).values.max())


def old(age: int | None, most: int) -> list[Alarm]:
    """The alarm of a model that has not seen the last ``age`` sessions, on if these are more than ``most``."""
    if age is None or age <= most:
        return []
    return [
        Alarm(
            OLD,
            f"the model has seen no prices of the last {age} sessions, and at most {most} are allowed",
            True,
        )
    ]


def silent(missing: int | None, most: int) -> list[Alarm]:
    """The alarm of a source that lacks the prices of ``missing`` sessions, on if these are more than ``most``."""
    if missing is None or missing <= most:
        return []
    return [
        Alarm(
            SILENT,
            f"the source has no prices of the last {missing} sessions, and at most {most} may be missing; "
            "check the source",
            False,
        )
    ]


def alarms_on(ledger: Ledger, name: str) -> dict[str, dict[str, Any]]:
    """The events of the alarms that are on, by name of the alarm."""
    on: dict[str, dict[str, Any]] = {}
    for event in reversed(ledger.events(name, "alarm", "alarm_over")):
        if event["kind"] == "alarm":
            on[event["details"]["alarm"]] = event
        else:
            on.pop(event["details"]["alarm"], None)
    return on
