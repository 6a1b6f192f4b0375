"""The routes of published forecasts and of their scores."""

import threading
import time
from urllib.parse import quote

import pytest
from live_ledger import DAYS, live
from serving_here import serving

from forecast.live.record import Record

SYMBOLS = ["^GSPC", "BTC-USD", "EUR/USD", "GC=F", "A.B/C"]
KEY = "open sesame"


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    opened = Record(tmp_path_factory.mktemp("models") / "ledger.db")
    live(opened, "many", SYMBOLS, [("a" * 64, 3), ("b" * 64, 5)])
    opened.add_event("many", "promoted", version="v1", session=DAYS[22], details={"why": "better"})
    opened.add_event(
        "many", "alarm", details={"alarm": "model_old", "text": "the model is old", "renew": True}
    )
    live(opened, "BTC-USD", ["BTC-USD"], [("c" * 64, 2)])
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def client(tiny_checkpoint, record):
    with serving(tiny_checkpoint, ledger=str(record.path)) as client:
        yield client


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_the_forecast_of_a_symbol_is_that_of_the_ledger_whatever_signs_it_has(client, record, symbol):
    found = record.forecast(symbol, [0.5, 0.9])
    for path in (quote(symbol, safe=""), quote(symbol), f"{quote(symbol, safe='')}/"):
        answer = client.get(f"/forecast/{path}")
        assert answer.status_code == 200
        published = answer.json()
        assert (published["symbol"], published["origin"]) == (symbol, found.origin)
        assert published["steps"] == [
            {
                "target": step.target,
                "horizon": step.horizon,
                "prediction": step.prediction,
                "intervals": [vars(interval) for interval in step.intervals],
            }
            for step in found.steps
        ]
        assert published["settled"] == []


@pytest.mark.parametrize(
    "query", ["level=0.8&level=0.95", "level=0.8,0.95", "level=0.8&level=0.95,", "level= 0.8 ,0.95"]
)
def test_levels_are_repeated_or_separated_by_commas(client, query):
    for path in ("/forecast/BTC-USD", "/forecast?q=BTC-USD"):
        answer = client.get(f"{path}{'&' if '?' in path else '?'}{query}").json()
        (step, *_) = answer.get("forecasts", [answer])[0]["steps"]
        assert [interval["level"] for interval in step["intervals"]] == [0.8, 0.95]


@pytest.mark.parametrize(
    ("query", "type_"),
    [
        ("level=1.5", "less_than"),
        ("level=0.5&level=x", "float_parsing"),
        ("level=0.995", "level"),
        ("level=", "too_short"),
    ],
)
def test_a_level_that_cannot_be_had_is_refused(client, query, type_):
    answer = client.get(f"/forecast/BTC-USD?{query}")
    (problem,) = answer.json()["detail"]
    assert (answer.status_code, problem["loc"], problem["type"]) == (422, ["query", "level"], type_)


def test_earlier_forecasts_come_with_what_came(client, record):
    settled = client.get("/forecast/GC=F?sessions=3&level=0.9").json()["settled"]
    expected = record.settled("many", "GC=F", 3)
    assert [step["realized"] for step in settled] == [row["realized"] for row in expected]
    assert [step["target"] for step in settled] == DAYS[25:28]
    assert [len(step["intervals"]) for step in settled] == [1, 1, 1]


def test_an_unknown_symbol_is_refused_with_the_one_that_was_meant(client):
    for asked, hint in (("BTCUSD", "did you mean BTC-USD?"), ("nothing", "GET /forecast lists them")):
        answer = client.get(f"/forecast/{asked}")
        assert answer.status_code == 404
        (problem,) = answer.json()["detail"]
        assert problem == {
            "loc": ["path", "symbol"],
            "msg": f"there is no published forecast of '{asked}'; {hint}",
            "type": "symbol",
        }


def test_all_forecasts_come_in_pages(client):
    first = client.get("/forecast?limit=4").json()
    assert (first["total"], first["next_offset"]) == (6, 4)
    second = client.get("/forecast?limit=4&offset=4").json()
    assert second["next_offset"] is None
    symbols = [each["symbol"] for page in (first, second) for each in page["forecasts"]]
    assert symbols == sorted([*SYMBOLS, "BTC-USD"])
    assert client.get("/forecast?q=usd").json()["total"] == 3


def test_scores_are_those_of_the_ledger(client, record):
    answer = client.get("/scores").json()
    (_, expected), _ = record.live()
    assert (answer["total"], answer["next_offset"]) == (2, None)
    (_, found) = answer["records"]
    assert (found["name"], found["sessions"], found["version"], found["symbols"]) == ("many", 4, "v1", 5)
    assert [(each["baseline"], each["horizon"], each["ratio"]) for each in found["skill"]] == [
        (each.baseline, each.horizon, pytest.approx(each.ratio)) for each in expected.skill
    ]
    assert [each["coverage"] for each in found["coverage"]] == [each.coverage for each in expected.coverage]
    assert found["history"][0]["details"] == {"why": "better"}
    assert found["alarms"][0]["details"]["text"] == "the model is old"
    assert [each["name"] for each in client.get("/scores?symbol=BTC-USD").json()["records"]] == [
        "BTC-USD",
        "many",
    ]
    assert client.get("/scores?name=BTC-USD").json()["total"] == 1
    assert client.get("/scores?name=many&sessions=6").json()["records"][0]["sessions"] == 6
    assert client.get("/scores?limit=1").json()["next_offset"] == 1


@pytest.mark.parametrize("path", ["/forecast", "/forecast/BTC-USD", "/scores"])
def test_without_a_ledger_the_remedy_is_named_and_no_file_is_made(tiny_checkpoint, tmp_path, path):
    for options in ({}, {"ledger": str(tmp_path / "ledger.db")}):
        with serving(tiny_checkpoint, **options) as client:
            answer = client.get(path)
            assert answer.status_code == 404
            (problem,) = answer.json()["detail"]
            assert problem["type"] == "no_ledger"
            assert "run `python -m tune_jobs.update`" in problem["msg"]
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_ledger_is_refused_and_one_in_its_place_is_read(tiny_checkpoint, record, tmp_path):
    place = tmp_path / "ledger.db"
    place.write_text("this is no database")
    with serving(tiny_checkpoint, ledger=str(place)) as client:
        refused = client.get("/scores")
        assert (refused.status_code, refused.json()["detail"][0]["type"]) == (503, "ledger")
        assert "restore the file from a copy" in refused.json()["detail"][0]["msg"]
        assert client.get("/healthz").status_code == 200
        place.unlink()
        other = Record(place)
        live(other, "A", ["A"], [("a", 1)])
        assert client.get("/forecast/A").status_code == 200
        other.close()


def test_what_is_published_while_the_server_runs_is_answered(client, record):
    assert client.get("/forecast/new").status_code == 404
    live(record, "new", ["new"], [("a", 1)])
    assert client.get("/forecast/new").json()["origin"] == DAYS[20]
    live(record, "new", ["new"], [("a", 1)], first=21)
    assert client.get("/forecast/new").json()["origin"] == DAYS[21]


@pytest.mark.parametrize("path", ["/forecast", "/forecast/BTC-USD", "/forecast/BTC-USD/", "/scores"])
def test_a_key_protects_them_and_they_are_counted_by_route(tiny_checkpoint, record, path):
    with serving(tiny_checkpoint, api_key=KEY, ledger=str(record.path)) as client:
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"x-api-key": KEY}).status_code == 200
        assert client.head(path, headers={"x-api-key": KEY}).content == b""
        route = "/forecast/{symbol}" if "BTC" in path else path
        assert dict(client.service.measurements.requests) == {(route, 401): 1, (route, 200): 2}


def test_a_slow_ledger_does_not_hold_up_other_requests(tiny_checkpoint, record, monkeypatch):
    waiting, gate = threading.Event(), threading.Event()

    def slow(self, *args, **kwargs):
        waiting.set()
        gate.wait(30)
        return [], 0

    monkeypatch.setattr(Record, "live", slow)
    with serving(tiny_checkpoint, ledger=str(record.path)) as client:
        asking = threading.Thread(target=client.get, args=("/scores",))
        asking.start()
        assert waiting.wait(30)
        started = time.monotonic()
        assert client.get("/healthz").status_code == 200
        assert time.monotonic() - started < 20
        gate.set()
        asking.join()
