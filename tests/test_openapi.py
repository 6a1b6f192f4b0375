"""Schemathesis tests the application in this process against its OpenAPI document."""

import schemathesis
from hypothesis import HealthCheck, given, settings
from live_ledger import live
from schemathesis.checks import load_all_checks
from serving_here import build

from forecast.live.record import Record


def test_whatever_the_schema_allows_is_answered_as_it_says_and_never_with_5xx(tiny_checkpoint, tmp_path):
    load_all_checks()
    checks = [
        schemathesis.checks.CHECKS.get_one(name)
        for name in ("not_a_server_error", "status_code_conformance", "response_schema_conformance")
    ]
    ledger = Record(tmp_path / "ledger.db")
    live(ledger, "BTC-USD", ["BTC-USD"], [("a", 3)])
    web, _ = build(tiny_checkpoint, ledger=str(ledger.path))
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
