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
        closes: the daily closes of its one symbol, BTC-USD; None is a row without a price.
        first: time of the first row, seconds since 1970.
        step: seconds from row to row.
        session_end: the end of the current trading session.
        garbage_first: answers that are garbage before those of ``mode``.
        requests: paths asked for so far.
    """

    daemon_threads = True

    def __init__(self, mode: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mode = mode
        self.closes: list[float | None] = [100.0 + row for row in range(50)]
        self.first = 1_700_006_400
        self.step = DAY
        self.session_end = 0
        self.garbage_first = 0
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def chart(self) -> dict:
        times = [self.first + row * self.step for row in range(len(self.closes))]
        meta = {
            "currency": "USD",
            "symbol": "BTC-USD",
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
        quote = dict.fromkeys(("open", "high", "low", "close"), self.closes)
        quote["volume"] = [None if close is None else 1000 for close in self.closes]
        result = {
            "meta": meta,
            "timestamp": times,
            "indicators": {"quote": [quote], "adjclose": [{"adjclose": self.closes}]},
        }
        return {"chart": {"result": [result], "error": None}}


class _Handler(BaseHTTPRequestHandler):
    server: YahooServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(path)
        mode = "garbage" if len(self.server.requests) <= self.server.garbage_first else self.server.mode
        symbol = path.rsplit("/", 1)[-1]
        if mode == "slow":
            time.sleep(5)
        if mode == "rate_limit":
            self._answer(429, "Too Many Requests")
        elif mode == "garbage":
            self._answer(503, "<html>We will return shortly</html>")
        elif mode == "refusal":
            error = {"code": "Internal Server Error", "description": "An internal error"}
            self._answer(500, json.dumps({"chart": {"result": None, "error": error}}))
        elif mode == "unknown" or symbol != "BTC-USD":
            error = {"code": "Not Found", "description": "No data found, symbol may be delisted"}
            self._answer(404, json.dumps({"chart": {"result": None, "error": error}}))
        elif mode == "empty":
            chart = self.server.chart()
            chart["chart"]["result"][0].pop("timestamp")
            chart["chart"]["result"][0]["indicators"] = {"quote": [{}], "adjclose": [{}]}
            self._answer(200, json.dumps(chart))
        else:
            self._answer(200, json.dumps(self.server.chart()))

    def _answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
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
