"""The ASGI application: the fast path of forecasts, limits and the API key. It runs, and is tested, without a cluster.

Forecast requests go from the ASGI server straight to ``ForecastService``: a web framework takes longer to find a route
than a forecast takes. ``serve_app.routes`` describes all routes and answers the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.live import LiveLedger
from serve_app.options import ServeOptions
from serve_app.routes import FORECAST, OF_SYMBOL, describe_routes
from serve_app.schemas import Problem
from serve_app.service import Answer, ForecastService, busy, refuse
from serve_app.tracing import spans

DRAIN_FACTOR = 256
"""A refused body is still read, and discarded, up to this many times the limit: a client that is still sending then
gets the answer instead of a broken connection."""
KEY_HEADERS = frozenset({b"authorization", b"x-api-key"})
OPEN_PATHS = frozenset({"/", "/healthz", "/docs", "/openapi.json", "/docs/oauth2-redirect"})
OPEN_PREFIXES = ("/assets/", "/static-offline-docs/")
"""Routes that need no key: health, and pages that reveal nothing about a model."""

Answering = Callable[[bytes], Awaitable[Answer]]


UTF8_BOM = b"\xef\xbb\xbf"
"""Some programs, such as Excel and PowerShell, begin UTF-8 text with this mark."""
PLAIN, GZIP = frozenset({b"", b"identity"}), frozenset({b"gzip", b"x-gzip"})
"""The values of ``Content-Encoding`` that are accepted, in lower case."""
GZIP_FORMAT = 31
"""zlib's ``wbits`` for a gzip header and checksum, with the largest window."""


class BodyTooLarge(Exception):
    """A request body is larger than the limit."""


class UnknownEncoding(Exception):
    """A request body has a content encoding that is not accepted."""


class WebApp:
    """The ASGI application."""

    def __init__(
        self, service: ForecastService, ledger: LiveLedger, options: ServeOptions, api_key: str | None
    ) -> None:
        """Answer with ``service`` and ``ledger``; if ``api_key`` is not empty, only clients that send it."""
        self._service, self._options = service, options
        self._key_hash = hashlib.sha256(api_key.encode()).digest() if api_key else None
        self._under_way = 0
        self._forecasts: dict[str, Answering] = {
            "/predict": service.predict,
            "/predict/batch": service.predict_batch,
        }
        self._described = describe_routes(service.models, ledger)
        self._known_paths = frozenset(getattr(route, "path", "") for route in self._described.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._described(scope, receive, send)
            return
        started = time.perf_counter()
        route = self._path_in_application(scope)
        if scope["path"].endswith("/") and not route.endswith("/"):
            scope = {**scope, "path": scope["path"][:-1]}
        knows_key, encoding = self._read_headers(scope["headers"])
        if not knows_key and not _is_open(route):
            answer = refuse(
                401,
                [
                    Problem(
                        loc=["header"], msg="send the API key, as Authorization: Bearer KEY", type="api_key"
                    )
                ],
                (b"www-authenticate", b"Bearer"),
            )
        elif scope["method"] == "POST" and (forecast := self._forecasts.get(route)) is not None:
            answer = await self._answer(forecast, receive, encoding)
        else:
            if scope["method"] == "HEAD" and route not in self._forecasts:
                # The answer of GET: the ASGI server sends its headers alone. FastAPI would refuse HEAD, or describe it.
                scope = {**scope, "method": "GET"}
            await self._described(scope, receive, self._counting(send, route, started))
            return
        length = (b"content-length", str(len(answer.body)).encode())
        await send(
            {"type": "http.response.start", "status": answer.status, "headers": [*answer.headers, length]}
        )
        await send({"type": "http.response.body", "body": answer.body})
        self._count(route, answer.status, started)

    def _count(self, route: str, status: int, started: float) -> None:
        self._service.measurements.answered(self._known(route), status, time.perf_counter() - started)

    def route_of(self, scope: Scope) -> str:
        """Return the route of a request, as it is counted and traced."""
        return self._known(self._path_in_application(scope))

    def _path_in_application(self, scope: Scope) -> str:
        """A request's path, without a slash at the end of one that is known without it."""
        # Where the application is mounted, a request's path starts with the mount's.
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        known = path.endswith("/") and (path[:-1] in self._known_paths or _is_of_symbol(path))
        return path[:-1] if known else path

    def _known(self, route: str) -> str:
        # Unknown routes are counted together: clients could invent any number of them.
        return OF_SYMBOL if _is_of_symbol(route) else route if route in self._known_paths else "other"

    def _read_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[bool, bytes]:
        """Return whether the client sent the key, if there is one, and the value of ``Content-Encoding``."""
        knows_key, encoding = self._key_hash is None, b""
        for name, value in headers:
            if name == b"content-encoding":
                encoding = value
            elif not knows_key and name in KEY_HEADERS:
                sent = hashlib.sha256(value.removeprefix(b"Bearer ") if name == b"authorization" else value)
                # Compares in constant time: hashes have the same length whatever was sent.
                knows_key = hmac.compare_digest(sent.digest(), self._key_hash or b"")
        return knows_key, encoding

    def _counting(self, send: Send, route: str, started: float) -> Send:
        async def count(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._count(route, message["status"], started)
            await send(message)

        return count

    async def _answer(self, forecast: Answering, receive: Receive, encoding: bytes) -> Answer:
        if self._under_way >= self._options.max_queued_requests:
            return busy(f"this replica has {self._under_way} requests under way; try again later")
        self._under_way += 1
        body = None
        try:
            async with asyncio.timeout(self._options.request_timeout_s):
                body = await _read_body(receive, self._options.max_body_bytes)
                if encoding:
                    body = decode(body, encoding, self._options.max_body_bytes)
                return await forecast(body.removeprefix(UTF8_BOM))
        except BodyTooLarge:
            message = f"the body is larger than {self._options.max_body_bytes} bytes; send fewer values"
            return refuse(413, [Problem(loc=["body"], msg=message, type="body_too_large")])
        except UnknownEncoding as error:
            message = (
                f"the content encoding {error} is not accepted; send gzip, or plain JSON without the header"
            )
            problem = Problem(loc=["header", "content-encoding"], msg=message, type="content_encoding")
            return refuse(415, [problem], (b"accept-encoding", b"gzip, identity"))
        except zlib.error as error:
            message = f"the body is not whole gzip data ({error}); pack it again, or send plain JSON"
            return refuse(422, [Problem(loc=["body"], msg=message, type="gzip")])
        except TimeoutError:
            limit = self._options.request_timeout_s
            if body is None:
                message = f"the body did not arrive within {limit:g} seconds; send it faster"
                return refuse(408, [Problem(loc=["body"], msg=message, type="timeout")])
            return busy(f"no answer within {limit:g} seconds; send fewer windows, or try again later")
        finally:
            self._under_way -= 1


def _is_open(route: str) -> bool:
    return not route or route in OPEN_PATHS or route.startswith(OPEN_PREFIXES)


def _is_of_symbol(route: str) -> bool:
    return route.startswith(f"{FORECAST}/")


async def _read_body(receive: Receive, limit: int) -> bytes:
    """Read the whole body, never keeping more than ``limit`` bytes.

    Raises:
        BodyTooLarge: when it is larger, whatever its headers say.
        asyncio.CancelledError: when the client has gone.
    """
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise asyncio.CancelledError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > limit * DRAIN_FACTOR:
            break
        more = message.get("more_body", False)
    if size > limit:
        raise BodyTooLarge
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def decode(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Undo the content encoding of a body, never unpacking more than a byte beyond ``limit``.

    Raises:
        UnknownEncoding: when the encoding is neither gzip nor none.
        BodyTooLarge: when the unpacked body is larger than the limit.
        zlib.error: when the body is not one whole gzip file.
    """
    name = encoding.strip().lower()
    if name in PLAIN:
        return body
    if name not in GZIP:
        raise UnknownEncoding(encoding.decode("latin-1"))
    gzip = zlib.decompressobj(GZIP_FORMAT)
    unpacked = gzip.decompress(body, limit + 1)
    if len(unpacked) > limit:
        raise BodyTooLarge
    if not gzip.eof:
        raise zlib.error("its end is missing")
    if gzip.unused_data:
        raise zlib.error("something follows its end")
    return unpacked


def build_web_app(
    service: ForecastService, ledger: LiveLedger, options: ServeOptions, api_key: str | None = None
) -> ASGIApp:
    """Build the whole application, with spans if the environment asks for them, and CORS if the options do."""
    application, traced = WebApp(service, ledger, options, api_key), spans()
    web: ASGIApp = application if traced is None else traced.requests(application, application.route_of)
    if options.cors_origins:
        web = CORSMiddleware(
            web,
            allow_origins=options.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=[
                "Authorization",
                "Content-Encoding",
                "Content-Type",
                "Traceparent",
                "Tracestate",
                "X-API-Key",
                "X-Request-ID",
            ],
            expose_headers=["X-Request-ID", "X-Model-Version"],
        )
    return web
