"""A server on this machine that speaks Yahoo's chart JSON, for the real yfinance client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

DAY = 86_400


class YahooServer(ThreadingHTTPServer):
    """Answers according to ``mode``: success, empty, unknown, rate_limit, refusal, garbage or slow.

    Attributes:
        closes: the daily closes of BTC-USD; None is a row without a price.
        symbols: the symbols that it knows, and the factor between their closes and those of BTC-USD.
        first: time of the first row, seconds since 1970.
        step: seconds from row to row.
        session_end: the end of the current trading session.
        garbage_first: answers that are garbage before those of ``mode``.
        limited: numbers of the requests whose answer is that there are too many; the first request is 0.
        retry_after: what such an answer asks to wait; None where it does not say.
        requests: paths asked for so far.
        times: when they were asked for, by the monotonic clock.
    """

    daemon_threads = True

    def __init__(self, mode: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mode = mode
        self.closes: list[float | None] = [100.0 + row for row in range(50)]
        self.first = 1_700_006_400
        self.step = DAY
        self.session_end = 0
        self.symbols = {"BTC-USD": 1.0}
        self.garbage_first = 0
        self.limited = range(0)
        self.retry_after: str | None = None
        self.requests: list[str] = []
        self.times: list[float] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, first: int = 0) -> set[str]:
        """The symbols asked for from request number ``first`` on."""
        return {symbol_of(path) for path in self.requests[first:]}

    def chart(self, symbol: str = "BTC-USD") -> dict:
        factor = self.symbols[symbol]
        closes = [None if close is None else factor * close for close in self.closes]
        times = [self.first + row * self.step for row in range(len(self.closes))]
        meta = {
            "currency": "USD",
            "symbol": symbol,
            "instrumentType": "CRYPTOCURRENCY",
            "exchangeTimezoneName": "UTC",
            "gmtoffset": 0,
            "timezone": "UTC",
            "firstTradeDate": times[0],
            "regularMarketTime": times[-1],
            "exchangeName": "CCC",
            "dataGranularity": "1d" if self.step == DAY else "1h",
            "range": "max",
            "validRanges": ["1d", "5d", "1mo", "1y", "max"],
            "currentTradingPeriod": {
                name: {
                    "timezone": "UTC",
                    "start": self.session_end - DAY,
                    "end": self.session_end,
                    "gmtoffset": 0,
                }
                for name in ("pre", "regular", "post")
            },
        }
        if self.step < DAY:
            days = sorted({time - time % DAY for time in times})
            meta["tradingPeriods"] = [
                [{"timezone": "UTC", "start": day, "end": day + DAY, "gmtoffset": 0}] for day in days
            ]
        quote = dict.fromkeys(("open", "high", "low", "close"), closes)
        quote["volume"] = [None if close is None else 1000 for close in closes]
        result = {
            "meta": meta,
            "timestamp": times,
            "indicators": {"quote": [quote], "adjclose": [{"adjclose": closes}]},
        }
        return {"chart": {"result": [result], "error": None}}


def symbol_of(path: str) -> str:
    return path.rsplit("/", 1)[-1]


class _Handler(BaseHTTPRequestHandler):
    server: YahooServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(path)
            self.server.times.append(time.monotonic())
        mode = "garbage" if number < self.server.garbage_first else self.server.mode
        symbol = symbol_of(path)
        if mode == "slow":
            time.sleep(5)
        if mode == "rate_limit" or number in self.server.limited:
            self._answer(429, "Too Many Requests")
        elif mode == "garbage":
            self._answer(503, "<html>We will return shortly</html>")
        elif mode == "refusal":
            error = {"code": "Internal Server Error", "description": "An internal error"}
            self._answer(500, json.dumps({"chart": {"result": None, "error": error}}))
        elif mode == "unknown" or symbol not in self.server.symbols:
            error = {"code": "Not Found", "description": "No data found, symbol may be delisted"}
            self._answer(404, json.dumps({"chart": {"result": None, "error": error}}))
        elif mode == "empty":
            chart = self.server.chart(symbol)
            chart["chart"]["result"][0].pop("timestamp")
            chart["chart"]["result"][0]["indicators"] = {"quote": [{}], "adjclose": [{}]}
            self._answer(200, json.dumps(chart))
        else:
            self._answer(200, json.dumps(self.server.chart(symbol)))

    def _answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429 and self.server.retry_after is not None:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(mode: str = "success") -> Iterator[YahooServer]:
    """Run a server until the block ends."""
    server = YahooServer(mode)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
