"""Whether requests are traced: OpenTelemetry's standard variables say so, in the environment of the replica.

Without them, nothing is wrapped and ``serve_app.spans`` is not imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from forecast.model.card import first_line
from serve_app.batching import Batcher, Window

if TYPE_CHECKING:
    from forecast.inference.predictor import Predictor
    from serve_app.spans import Spans

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def is_asked_for(environment: Mapping[str, str]) -> bool:
    """Tell whether an environment asks for traces: it names an exporter, or a place to send to.

    An empty variable is one that is not set (OpenTelemetry's specification, "Environment Variable Specification").
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if exporters := environment.get("OTEL_TRACES_EXPORTER", "").strip():
        return exporters != "none"
    return any(environment.get(name, "").strip() for name in ENDPOINTS)


@cache
def spans() -> Spans | None:
    """What makes this process's spans; None where it is not asked for, or cannot be had, which is logged once."""
    if not is_asked_for(os.environ):
        return None
    # Modules that ``serve_app.models`` needs import this one.
    from serve_app.models import logger

    try:
        from serve_app.spans import Spans

        made = Spans.of_environment()
    except Exception as error:  # OpenTelemetry raises many kinds for an invalid variable
        logger.error("requests are not traced: %s", first_line(error))
        return None
    # Otherwise, no log of a replica would say what goes wrong later, for example that the collector does not answer.
    for handler in logger.handlers:
        logging.getLogger("opentelemetry").addHandler(handler)
    return made


def make_batcher(
    predictor: Predictor,
    forecast: Callable[[list[Window]], list[Result]],
    *,
    max_batch_size: int,
    wait_s: float,
    thread: ThreadPoolExecutor | None,
) -> Batcher[Result]:
    """Build a ``Batcher`` for a function that runs a predictor's network, traced if that is asked for."""
    traced = spans()
    make = Batcher[Result] if traced is None else traced.batcher(predictor)
    return make(forecast, max_batch_size=max_batch_size, wait_s=wait_s, thread=thread)


def traced_network(
    compute: Callable[Arguments, Result], predictors: Sequence[Predictor], windows: int
) -> Callable[Arguments, Result]:
    """Return a function that another thread is to run, with a span around it if that is asked for.

    Args:
        compute: runs the network of ``predictors``.
        predictors: they share an engine.
        windows: number of windows that it forecasts.
    """
    traced = spans()
    return compute if traced is None else traced.network(compute, predictors, windows)
