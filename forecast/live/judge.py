"""The judgement of a challenger: its scores and the champion's on the sessions that neither was trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forecast.backtest.significance import diebold_mariano
from forecast.errors import UsageError
from forecast.model.checkpoint import Checkpoint
from forecast.model.market import moves_of
from forecast.model.split import Split, moment
from forecast.model.training import forecast_part
from forecast.model.windows import PreparedSeries
from forecast.prices.series import Series

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """The scores of a challenger and of the champion.

    Attributes:
        sessions: number of sessions that both forecast.
        first: the first of these sessions, ISO 8601; None if there are none.
        champion: the champion's mean CRPS; with several symbols, divided by the mean size of each symbol's changes.
        challenger: the same for the challenger.
        p_value: of the test of Diebold and Mariano (1995) that both are equally good; 1.0 for fewer than two sessions.
    """

    sessions: int
    first: str | None
    champion: float
    challenger: float
    p_value: float

    @property
    def better(self) -> bool:
        """Whether the challenger's mean CRPS is lower."""
        return self.challenger < self.champion


def judge(
    champion: Checkpoint, challenger: Checkpoint, prices: Mapping[str, Series], after: str
) -> Judgement:
    """Score two models on the sessions after a date.

    Rows that either model has seen are never scored, whatever the date.

    Args:
        champion: the served model.
        challenger: the challenger's configuration, as it was scored.
        prices: clean prices by symbol; symbols that either model does not know are left out.
        after: date or time of the last session that the champion has seen, ISO 8601.
    """
    seen = [date for model in (champion, challenger) if (date := seen_until(model)) is not None]
    after = max([after, *seen], key=moment)
    found = [session_losses(model, prices, after) for model in (champion, challenger)]
    sessions = sorted(found[0].keys() & found[1].keys())
    # A session counts with the symbols that both forecast in it.
    both = [found[0][date].keys() & found[1][date].keys() for date in sessions]
    losses = [
        np.array(
            [np.mean([each[date][s] for s in symbols]) for date, symbols in zip(sessions, both, strict=True)]
        )
        for each in found
    ]
    if not sessions:
        return Judgement(0, None, float("nan"), float("nan"), 1.0)
    p_value = diebold_mariano(losses[1], losses[0])[1] if len(sessions) > 1 else 1.0
    return Judgement(len(sessions), sessions[0], float(losses[0].mean()), float(losses[1].mean()), p_value)


def seen_until(model: Checkpoint) -> str | None:
    """Date or time of the last row, of any symbol, that a model was trained or calibrated on; None if unknown."""
    ends = [model.validated_until, *(part.validated_until for part in model.symbols.values())]
    return max((end for end in ends if end is not None), key=moment, default=None)


def session_losses(
    model: Checkpoint, prices: Mapping[str, Series], after: str
) -> dict[str, dict[str, float]]:
    """A model's CRPS by session and symbol; with several symbols, divided by the mean size of the symbol's changes."""
    own = _prepared(model, prices, after)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for symbol, (checkpoint, prepared) in own.items():
        length = checkpoint.config.sequence_length
        rows = prepared.rows("test", length)
        forecasts = forecast_part(checkpoint, prepared, "test")
        unit = 1.0 if len(prices) == 1 else float(np.abs(rows.actual - rows.previous).mean())
        if forecasts.quantiles is None or unit <= 0:
            continue
        dates = prices[symbol].dates[prepared.target_rows("test", length)]
        for date, loss in zip(
            prices[symbol].timeline.text(dates), rows.losses("CRPS", forecasts) / unit, strict=True
        ):
            found[date][symbol] = float(loss)
    return found


def _prepared(
    model: Checkpoint, prices: Mapping[str, Series], after: str
) -> dict[str, tuple[Checkpoint, PreparedSeries]]:
    """The checkpoint and the series of each symbol that the model knows, with the rows after a date as test rows."""
    own: dict[str, tuple[Checkpoint, PreparedSeries]] = {}
    for symbol, series in prices.items():
        try:
            checkpoint = model.of_symbol(symbol)
        except UsageError:
            continue
        end = int(np.searchsorted(series.dates, series.timeline.parse(after), side="right"))
        prepared = PreparedSeries(
            checkpoint.normalization.normalize(series.matrix),
            checkpoint.normalization,
            Split(end, end, len(series)),
        )
        if len(prepared.split.targets("test", checkpoint.sequence_length)):
            own[symbol] = checkpoint, prepared
    if model.market is None or not own:
        return own
    every = np.unique(np.concatenate([prices[symbol].dates for symbol in own]))
    at = {symbol: np.searchsorted(every, prices[symbol].dates) for symbol in own}
    moves = moves_of(
        [prepared.changes for _, prepared in own.values()], [at[symbol][1:] for symbol in own], len(every)
    )
    columns = model.market.columns(moves)
    return {
        symbol: (checkpoint, replace(prepared, market=columns[at[symbol]]))
        for symbol, (checkpoint, prepared) in own.items()
    }
