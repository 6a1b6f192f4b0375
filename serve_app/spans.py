"""OpenTelemetry's spans of a request, its wait for a batch, the batch and the network; see ``serve_app.tracing``.

Spans never hold prices, messages of errors (which may quote prices), query strings or headers.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, ParamSpec, TypeVar

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forecast.errors import UsageError
from forecast.inference.predictor import Predictor
from forecast.names import listed, split_names
from forecast.version import installed_version
from serve_app.batching import Batch, Batcher, Outcome, Window
from serve_app.metrics import short_version

DEFAULT_NAME = "price-forecaster"
"""The service's name unless ``OTEL_SERVICE_NAME`` or ``OTEL_RESOURCE_ATTRIBUTES`` gives one."""
UNNAMED = "unknown_service"
"""How the name that OpenTelemetry gives a service without one begins."""
OTLP = "otlp"
EXPORTERS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""Entry points of the exporters of OTLP, by the protocols of ``OTEL_EXPORTER_OTLP_PROTOCOL``."""
DEFAULT_PROTOCOL = "http/protobuf"
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
UNTRACED = frozenset({"/healthz"})
"""Routes without spans: of a quiet server, most would be health checks."""

Headers = Sequence[tuple[bytes, bytes]]
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class Spans:
    """Makes the spans of one process and sends them to the exporters.

    Attributes:
        provider: OpenTelemetry's object that does so. It is not made the global one: Ray Serve may have one there.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer("serve_app", installed_version())

    @classmethod
    def of_environment(cls) -> Spans:
        """Configure everything from the standard environment variables.

        Raises:
            UsageError: when they name an exporter that is not installed.
        """
        exporters = _exporters()
        provider = TracerProvider(resource=_resource())
        for exporter in exporters:
            provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def requests(self, web: ASGIApp, route_of: Callable[[Scope], str]) -> ASGIApp:
        """Wrap an application in spans of its requests, the parents of which the clients may name (``traceparent``).

        Args:
            web: the application.
            route_of: returns the known route of a request.
        """

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or (route := route_of(scope)) in UNTRACED:
                await web(scope, receive, send)
                return
            # https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span
            method = scope["method"] if scope["method"] in METHODS else "_OTHER"
            attributes = {
                "http.request.method": method,
                "http.route": route,
                "url.path": scope["path"],
                "url.scheme": scope.get("scheme", "http"),
            }
            parent = propagate.extract(scope["headers"], getter=_HEADERS)
            with self._span(f"{method} {route}", parent, kind=SpanKind.SERVER, attributes=attributes) as span:

                async def answer(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        status = message["status"]
                        span.set_attribute("http.response.status_code", status)
                        if status >= 500:
                            _fail(span, str(status))
                    await send(message)

                await web(scope, receive, answer)

        return traced

    def batcher(self, predictor: Predictor) -> Callable[..., Batcher[Any]]:
        """Return what makes batchers of a predictor's windows."""

        def make(
            forecast: Callable[[list[Window]], list[Result]],
            *,
            max_batch_size: int,
            wait_s: float,
            thread: ThreadPoolExecutor | None,
        ) -> Batcher[Result]:
            def traced(windows: list[Window]) -> list[Result]:
                return self.network(forecast, [predictor], len(windows))(windows)

            return TracedBatcher(
                traced, max_batch_size=max_batch_size, wait_s=wait_s, thread=thread, spans=self
            )

        return make

    def network(
        self, compute: Callable[Arguments, Result], predictors: Sequence[Predictor], windows: int
    ) -> Callable[Arguments, Result]:
        """Wrap a function in a span below the current one, in whatever thread it runs; without one, return it as it is.

        Args:
            compute: runs the network of ``predictors``.
            predictors: they share an engine.
            windows: number of windows that it forecasts.
        """
        if not trace.get_current_span().is_recording():
            return compute
        parent, first = contexts.get_current(), predictors[0]
        attributes = {
            "forecast.batch.size": windows,
            "forecast.engine": first.engine.name,
            "forecast.device": str(first.engine.device),
            "forecast.symbol": listed(each.checkpoint.config.symbol for each in predictors),
            "forecast.model.version": short_version(first.checkpoint.sha256 or ""),
        }

        def traced(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with self._span("network", parent, attributes=attributes):
                return compute(*args, **kwargs)

        return traced

    def wait(self) -> tuple[Span, Span] | None:
        """Begin the span of a wait for a batch; return it after the current one. None if that is not recorded."""
        request = trace.get_current_span()
        return (request, self._tracer.start_span("wait")) if request.is_recording() else None

    @contextmanager
    def batch(self, size: int, waits: Sequence[tuple[Span, Span]]) -> Iterator[None]:
        """The current span becomes that of a batch, and the waits for it end.

        It is a child of the first request, and it links to all of them: a span has one parent.
        """
        if not waits:
            with trace.use_span(trace.INVALID_SPAN):
                yield
            return
        requests = [request for request, _ in waits]
        parent, links = trace.set_span_in_context(requests[0], Context()), map(_link, requests)
        with self._span("batch", parent, attributes={"forecast.batch.size": size}, links=list(links)) as span:
            for _, wait in waits:
                wait.add_link(span.get_span_context())
                wait.end()
            yield

    @contextmanager
    def _span(self, name: str, parent: Context, **details: Any) -> Iterator[Span]:
        """A span that is the current one until its end; an exception marks it, by its type alone."""
        with self._tracer.start_as_current_span(
            name, parent, record_exception=False, set_status_on_exception=False, **details
        ) as span:
            try:
                yield span
            except BaseException as error:
                _fail(span, type(error).__name__)
                raise


class TracedBatcher(Batcher[Result]):
    """A ``Batcher`` whose waits and batches have spans."""

    def __init__(self, *args: Any, spans: Spans, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._spans = spans
        self._waits: dict[asyncio.Future[Result], tuple[Span, Span]] = {}

    def forecast(self, window: Window) -> asyncio.Future[Result]:
        """Return a future of the result for ``window``; call this on the event loop."""
        future = super().forecast(window)
        if (wait := self._spans.wait()) is not None:
            self._waits[future] = wait
            future.add_done_callback(self._leave)
        return future

    def _leave(self, future: asyncio.Future[Result]) -> None:
        """End a wait that no batch has ended: the client has gone, or its time limit has passed."""
        if (wait := self._waits.pop(future, None)) is not None:
            _fail(wait[1], asyncio.CancelledError.__name__)
            wait[1].end()

    def _run(self, batch: Batch[Result]) -> list[Outcome[Result]]:
        waits = [self._waits.pop(future, None) for _, future in batch]
        with self._spans.batch(len(batch), [wait for wait in waits if wait is not None]):
            return super()._run(batch)


class _Headers(Getter[Headers]):
    """Reads the headers of an ASGI request."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        name = key.lower().encode("latin-1")
        return [value.decode("latin-1") for each, value in carrier if each == name] or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier]


_HEADERS = _Headers()


def _link(span: Span) -> Link:
    return Link(span.get_span_context())


def _fail(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


def _exporters() -> list[SpanExporter]:
    """The exporters that the environment names, and OTLP unless it does.

    Raises:
        UsageError: when one is not installed.
    """
    exporters = []
    for name in split_names(os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or OTLP):
        if name == OTLP:
            protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
                "OTEL_EXPORTER_OTLP_PROTOCOL"
            )
            name = EXPORTERS.get(protocol or DEFAULT_PROTOCOL, protocol)
        found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
        if found is None:
            raise UsageError(
                f"the exporter {name} of OpenTelemetry is not installed; install pareto-price-forecaster[tracing], "
                f"which has {EXPORTERS[DEFAULT_PROTOCOL]}"
            )
        exporters.append(found.load()())
    return exporters


def _resource() -> Resource:
    resource = Resource.create({SERVICE_VERSION: installed_version()})
    if str(resource.attributes.get(SERVICE_NAME, UNNAMED)).startswith(UNNAMED):
        resource = resource.merge(Resource({SERVICE_NAME: DEFAULT_NAME}))
    return resource
