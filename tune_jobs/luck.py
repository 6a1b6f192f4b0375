"""What luck can explain of a pick, on the rows that it was chosen on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from forecast.backtest.significance import superior_predictive_ability
from tune_jobs.costs import Preference, RowLosses

CHOICES = 2
"""Factor on the p-value, since a trial's best epoch is chosen on the same rows, of which Hansen's test knows nothing.

It is a rough correction, checked on random walks (``benchmarks.jobs``).
"""
SIGNIFICANCE = 0.05
"""P-value below which the best trial's advantage over persistence counts as skill."""


@dataclass(frozen=True)
class Luck:
    """What luck can explain of a pick, on the rows that it was chosen on.

    Attributes:
        same_as_pick: numbers of the front's trials whose cost noise cannot tell from the pick's; the pick is one.
        pick_same_as_persistence: whether noise cannot tell persistence's cost from the pick's.
        metric: name of the metric that ``p_value`` is about; ``weighted`` for the weighted sum.
        trials: number of trials compared with persistence.
        p_value: against "no trial is better than persistence".
    """

    same_as_pick: frozenset[int]
    pick_same_as_persistence: bool
    metric: str
    trials: int
    p_value: float

    @property
    def skill(self) -> bool:
        """Whether the best trial's advantage over persistence is more than luck."""
        return self.p_value < SIGNIFICANCE


def p_value_of_best(trials: Sequence[RowLosses], persistence: RowLosses, preference: Preference) -> float:
    """Test whether the best of all trials is better than persistence, given that it is the best (Hansen 2005).

    The p-value is roughly corrected for the choice of each trial's epoch on the same rows.

    Args:
        trials: the losses of each trial, at least one.
        persistence: persistence's losses of the same rows.
        preference: what the trials are compared by.
    """
    # A loss is weighed by persistence's mean loss and not by its metric, because RMSE's losses are squared.
    of_rows = replace(
        preference, persistence={name: float(loss.mean()) for name, loss in persistence.items()}
    )
    losses = np.stack([of_rows.cost(trial) for trial in trials])
    return min(1.0, CHOICES * superior_predictive_ability(losses, of_rows.cost(persistence)))
