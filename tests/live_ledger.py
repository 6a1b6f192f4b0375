"""Fill a ledger session by session, as updates do, with made-up forecasts of made-up prices."""

import numpy as np

from forecast.live.issue import Issued
from forecast.prices.timeline import Timeline
from forecast.scores.distribution import PROBABILITIES

DAYS = [str(day) for day in np.arange("2024-01-01", "2024-06-01", dtype="datetime64[D]")]
SPREAD = np.log(PROBABILITIES / (1 - PROBABILITIES))
WIDTHS = {"persistence": 2.0, "GARCH": 1.5}
"""Widths of the baselines' distributions; a model's is one."""


def made_up_prices(symbol):
    """A random walk of a symbol."""
    return 100 + np.cumsum(np.random.default_rng(list(symbol.encode())).logistic(size=len(DAYS)))


def issued(symbol, price, origin, horizon, model, width=1.0):
    """The forecast of a random walk: the last price, with a logistic distribution around it."""
    return Issued(
        symbol=symbol,
        origin=DAYS[origin],
        last_price=price,
        target=DAYS[origin + horizon],
        horizon=horizon,
        model=model,
        prediction=price,
        quantiles=price + width * np.sqrt(horizon) * SPREAD,
        timeline=Timeline("1d", "24/7"),
    )


def live(ledger, name, symbols, models, first=20, horizons=(1, 3), shadow=None):
    """Let one model after the other, with its number of sessions, publish the forecasts of a name, beside baselines."""
    prices = {symbol: made_up_prices(symbol) for symbol in symbols}
    origin = first
    for model, sessions in models:
        for _ in range(sessions):
            ledger.settle(
                name, {symbol: (DAYS[: origin + 1], prices[symbol][: origin + 1]) for symbol in symbols}
            )

            def of(who, width=1.0):
                every = [(symbol, horizon) for symbol in symbols for horizon in horizons]
                return [issued(s, float(prices[s][origin]), origin, h, who, width) for s, h in every]  # noqa: B023

            roles = {
                "baseline": [each for who, width in WIDTHS.items() for each in of(who, width)],
                "champion": of(model),
            }
            if shadow:
                roles["shadow"] = of(shadow, 1.1)
            ledger.issue(name, roles)
            origin += 1
    return prices
