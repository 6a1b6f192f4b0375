"""The rules by which a challenger replaces the champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from forecast.live.alarms import shadow_evidence
from forecast.scores.sequential import proof

if TYPE_CHECKING:
    from forecast.live.judge import Judgement

LEAST_PAIRED = 5
"""Fewest sessions on which a challenger is judged."""
PROOF_ERROR = 0.05
"""Largest share of challengers that are not better for which a proof is wrong."""


@dataclass(frozen=True)
class Verdict:
    """The decision on a challenger, its reason and its figures."""

    decision: Literal["promoted", "kept", "shadow", "waits"]
    why: str
    figures: Mapping[str, Any]


def verdict_of(judgement: Judgement, shadow_sessions: int) -> Verdict:
    """Decide on a challenger that was judged on past sessions.

    The champion stays if its mean CRPS is lower on the sessions that neither was trained on. Otherwise the challenger
    is promoted, since it has seen later prices. With ``shadow_sessions``, a challenger whose advantage is not
    significant runs as a shadow first. With fewer than ``LEAST_PAIRED`` sessions there is no evidence for either: the
    challenger waits, and is judged again at the next session.
    """
    figures = {**asdict(judgement), "rule": "mean CRPS of the same sessions"}
    if judgement.sessions < LEAST_PAIRED:
        if not judgement.sessions:
            figures |= {"champion": None, "challenger": None}
        why = f"{judgement.sessions} sessions are new to both versions so far, and a judgement needs {LEAST_PAIRED}"
        return Verdict("shadow" if shadow_sessions else "waits", why, figures)
    why = (
        f"CRPS {judgement.challenger:.5g}, the current version's {judgement.champion:.5g}, on {judgement.sessions} "
        f"sessions (p = {judgement.p_value:.2f})"
    )
    # Written this way, the comparison rejects a challenger whose score is NaN.
    if not judgement.challenger <= judgement.champion:
        return Verdict("kept", why, figures)
    if shadow_sessions and judgement.p_value > PROOF_ERROR:
        return Verdict("shadow", why, figures)
    return Verdict("promoted", why, figures)


def verdict_of_shadow(
    shadow: Sequence[Mapping[str, Any]], champion: Sequence[Mapping[str, Any]], most: int
) -> Verdict | None:
    """Decide on a challenger that runs as a shadow; None while it is too early.

    Args:
        shadow: the shadow's sessions in the ledger.
        champion: the champion's sessions in the ledger.
        most: number of sessions after which the lower mean CRPS decides; a proof decides earlier.
    """
    losses = {row["target"]: row["crps"] for row in champion}
    both = [row for row in shadow if row["target"] in losses]
    evidence = shadow_evidence(both)
    proved = evidence >= proof(PROOF_ERROR)
    if not both or (len(both) < most and not proved):
        return None
    means = [
        sum(row["crps"] for row in both) / len(both),
        sum(losses[row["target"]] for row in both) / len(both),
    ]
    better = proved or means[0] < means[1]
    figures = {
        "rule": "mean CRPS of published and shadow forecasts, in units of persistence's",
        "sessions": len(both),
        "champion": means[1],
        "challenger": means[0],
        "evidence": evidence,
    }
    why = (
        f"CRPS {means[0]:.4f}, the current version's {means[1]:.4f}, on {len(both)} sessions as a shadow "
        f"(evidence {evidence:.3g})"
    )
    return Verdict("promoted" if better else "kept", why, figures)
