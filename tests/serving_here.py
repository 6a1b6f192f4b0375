"""Run the serving application as a replica does, but in this process and without Ray."""

import asyncio
import contextlib

from fastapi.testclient import TestClient

from serve_app.gateway import build_web_app
from serve_app.live import LiveLedger
from serve_app.metrics import Measurements
from serve_app.models import Models
from serve_app.options import ServeOptions
from serve_app.recording import Recorder
from serve_app.served_model import Engines
from serve_app.service import ForecastService

LIMIT = 50_000
"""The largest request body, in bytes."""


def build(checkpoint, api_key=None, **options):
    """Build the ASGI application and the service behind it."""
    options = ServeOptions(**({"max_body_bytes": LIMIT} | options))
    wait_s = options.batch_wait_ms and options.batch_wait_ms / 1000
    models = Models(Engines(engine=options.engine, batch_wait_s=wait_s), options.cache_mb)
    asyncio.run(models.load(str(checkpoint)))
    ledger = LiveLedger(models, options.ledger)
    service = ForecastService(
        models,
        Measurements(),
        max_forecasts=options.max_forecasts,
        age=options,
        recorder=Recorder(ledger, options.record_share) if options.record_share else None,
    )
    return build_web_app(service, ledger, options, api_key), service


@contextlib.contextmanager
def serving(checkpoint, api_key=None, **options):
    """Start a client of the application; ``client.service`` is the service behind it."""
    web, service = build(checkpoint, api_key, **options)
    with TestClient(web) as client:
        client.service = service
        yield client
