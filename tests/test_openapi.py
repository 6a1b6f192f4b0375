"""The OpenAPI document: what it allows is answered as it says, and a client generated from it works."""

import asyncio
import importlib
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from live_ledger import live
from schemathesis.checks import load_all_checks
from serving_here import build

from forecast import Predictor
from forecast.live.record import Record


@pytest.fixture(scope="module")
def web(tiny_checkpoint, tmp_path_factory):
    """The application, with a published forecast."""
    ledger = Record(tmp_path_factory.mktemp("ledger") / "ledger.db")
    live(ledger, "BTC-USD", ["BTC-USD"], [("a", 3)])
    return build(tiny_checkpoint, ledger=str(ledger.path))[0]


def test_whatever_the_schema_allows_is_answered_as_it_says_and_never_with_5xx(web):
    load_all_checks()
    checks = [
        schemathesis.checks.CHECKS.get_one(name)
        for name in ("not_a_server_error", "status_code_conformance", "response_schema_conformance")
    ]
    statuses = set()
    schema = schemathesis.openapi.from_asgi("/openapi.json", web)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 8
    for operation in operations:

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def answer(case):
            response = case.call()
            statuses.add(response.status_code)
            case.validate_response(response, checks=checks)

        answer()
    assert {200, 404, 422} <= statuses


@pytest.fixture(scope="module")
def client(web, tmp_path_factory):
    """The package of a client that is generated from the application's own document."""
    place = tmp_path_factory.mktemp("generated")
    answer = ask(web, lambda http: http.get("/openapi.json"))
    (place / "openapi.json").write_text(answer.text)
    # The generator would run ruff over the package.
    (place / "config.yml").write_text("post_hooks: []\n")
    command = "generate --path openapi.json --config config.yml --meta none --output-path forecaster_client"
    done = subprocess.run(
        [sys.executable, "-m", "openapi_python_client", *command.split(), "--fail-on-warning"],
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        yield importlib.import_module("forecaster_client")


def ask(web, call):
    """Make one call with an HTTP client of the application in this process."""

    async def answered():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(web), base_url="http://forecaster"
        ) as http:
            return await call(http)

    return asyncio.run(answered())


def call(client, web, operation, **arguments):
    """Call an operation of the generated client, and return its typed answer."""

    def typed(http):
        caller = client.Client(base_url="http://forecaster").set_async_httpx_client(http)
        return importlib.import_module(f"forecaster_client.api.{operation}").asyncio_detailed(
            client=caller, **arguments
        )

    return ask(web, typed)


def test_a_generated_client_gets_typed_forecasts_and_refusals(client, web, tiny_checkpoint):
    models = importlib.import_module("forecaster_client.models")
    window = Predictor(tiny_checkpoint, "cpu").typical_window()
    asked = models.PredictRequest(values=window, horizon=2, levels=[0.9])
    answer = call(client, web, "forecasts.predict", body=asked)
    assert answer.status_code == 200
    assert isinstance(answer.parsed, models.PredictAnswer)
    (interval,) = answer.parsed.intervals
    assert interval.lower[1] < answer.parsed.predictions[1] < interval.upper[1]

    refused = call(client, web, "forecasts.predict", body=models.PredictRequest(values=[1.0]))
    assert refused.status_code == 422
    assert isinstance(refused.parsed, models.ErrorAnswer)
    assert refused.parsed.detail[0].loc == ["body", "values"]

    published = call(client, web, "published.get_forecast", symbol="BTC-USD", level=[0.5])
    assert isinstance(published.parsed, models.PublishedForecast)
    assert [interval.level for interval in published.parsed.steps[0].intervals] == [0.5]

    many = call(client, web, "forecasts.predict_batch", body=models.BatchRequest(windows=[window] * 2))
    assert len(many.parsed.predictions) == 2


def test_a_generated_client_has_plain_names(client):
    """A name made of a route, a method or a place in a schema would mean that the document lacks one."""
    package = Path(client.__file__).parent
    operations = {file.stem for file in package.glob("api/*/[a-z]*.py")}
    assert operations == {
        "predict",
        "predict_batch",
        "get_model",
        "list_models",
        "list_forecasts",
        "get_forecast",
        "get_scores",
        "get_health",
    }
    made_up = ("type_", "additional_property", "item_", "post", "body")
    names = [file.stem for file in package.glob("models/*.py")]
    assert not [name for name in names if any(part in name for part in made_up)]
