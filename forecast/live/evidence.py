"""Evidence from one session about a model: the places of prices in its forecasts, and its scores against other models.

The ledger keeps this evidence with the session's scores, so that alarms need not read every forecast again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forecast.scores.sequential import bins_of, difference_bound

Array = NDArray[np.float64]
Role = Literal["champion", "shadow", "baseline"]
Key = tuple[str, int, str]
"""A session's date, the number of steps, and the model."""

PLACES, SKILL = "places", "skill"
"""The fields: the bin of each symbol's price among the forecast's quantiles; the mean over symbols of the CRPS of the
model minus that of the other model, divided by the most by which the model could have been better."""
CHAMPION = "champion"
"""Key of the champion among the models that a shadow is compared with. Its differences are champion minus shadow,
divided by the most by which the champion could have been better."""


@dataclass(frozen=True)
class Scored:
    """A forecast with its quantiles (199,) and its scores."""

    symbol: str
    target: str
    horizon: int
    model: str
    role: Role
    quantiles: Array
    crps: float
    pit: float


def evidence_of(scored: Sequence[Scored]) -> dict[Key, dict[str, Any]]:
    """The evidence from each session for champions and shadows, from forecasts of one step, as plain values."""
    sessions: dict[str, dict[tuple[Role, str], dict[str, Scored]]] = defaultdict(lambda: defaultdict(dict))
    for each in scored:
        if each.horizon == 1:
            sessions[each.target][each.role, each.model][each.symbol] = each
    found: dict[Key, dict[str, Any]] = {}
    for target, models in sessions.items():
        for (role, model), own in models.items():
            if role == "baseline":
                continue
            skill = {}
            for (other_role, other), theirs in models.items():
                if other_role == "baseline":
                    skill[other] = _mean_ratio(own, theirs)
                elif role == "shadow" and other_role == "champion":
                    skill[CHAMPION] = _mean_ratio(theirs, own)
            found[target, 1, model] = {
                PLACES: bins_of(np.array([each.pit for each in own.values()])).tolist(),
                SKILL: {name: ratio for name, ratio in skill.items() if ratio is not None},
            }
    return found


def _mean_ratio(own: dict[str, Scored], theirs: dict[str, Scored]) -> float | None:
    """The mean over the symbols with forecasts of both; None if there are none."""
    symbols = [symbol for symbol in own if symbol in theirs]
    if not symbols:
        return None
    ours, others = (np.stack([each[s].quantiles for s in symbols]) for each in (own, theirs))
    differences = np.array([own[symbol].crps - theirs[symbol].crps for symbol in symbols])
    bounds = difference_bound(ours, others)
    ratios = np.divide(differences, bounds, out=np.zeros(len(symbols)), where=bounds > 0)
    # Quantiles are kept in single precision.
    return float(np.maximum(ratios, -1.0).mean())
