"""Forecasts beyond one window, the API key, behaviour under load, and new models."""

import asyncio
import json
import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from bodies import GOOD, SHORT
from serving_here import LIMIT, build, serving

from forecast import Predictor, TrainConfig, load_checkpoint, load_series, save_checkpoint, train
from forecast.errors import UsageError
from forecast.inference import engines
from forecast.model.network import build_network, multiply_adds
from serve_app.batching import Batcher
from serve_app.models import Models
from serve_app.served_model import Engines


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint):
    return Predictor(tiny_checkpoint, "cpu")


@pytest.fixture(scope="module")
def client(tiny_checkpoint):
    with serving(tiny_checkpoint, max_forecasts=100) as client:
        yield client


def another_model(tiny_result, path, symbol="BTC-USD", bias=0.5):
    """Write a checkpoint with different forecasts."""
    state = {name: value.clone() for name, value in tiny_result.checkpoint.model_state.items()}
    state["regressor.bias"] += bias
    config = tiny_result.checkpoint.config.model_copy(update={"symbol": symbol})
    save_checkpoint(tiny_result.checkpoint.model_copy(update={"model_state": state, "config": config}), path)
    return path


@pytest.fixture
def two_symbols(tiny_result, tiny_checkpoint, tmp_path):
    shutil.copy(tiny_checkpoint, tmp_path / "btc.pt")
    another_model(tiny_result, tmp_path / "eth.pt", "ETH-USD")
    return tmp_path


def predictions(client, **body):
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chosen(client):
    """Return the one model of a server."""
    return asyncio.run(client.service.models.choose(None))


def test_a_horizon_is_forecast_step_by_step_from_the_steps_before(client, predictor):
    window, expected = list(GOOD), []
    for _ in range(4):
        expected.append(predictor.predict_next(window))
        window = [*window[1:], expected[-1]]
    answer = predictions(client, values=GOOD, horizon=4)
    assert answer["predictions"] == pytest.approx(expected, rel=1e-6)
    assert answer["prediction"] == answer["predictions"][0]
    assert "predictions" not in predictions(client, values=GOOD)


@pytest.mark.parametrize("horizon", [0, -1, 366, 1.5, "3", True, [1]])
def test_a_horizon_that_is_none_is_refused(client, horizon):
    answer = client.post("/predict", json={"values": GOOD, "horizon": horizon})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "horizon"]


def test_a_batch_answers_each_window_as_it_would_be_answered_alone(client, predictor):
    windows = [GOOD, [v * 1.1 for v in GOOD], [5.0, *GOOD]]
    answer = client.post("/predict/batch", json={"windows": windows}).json()
    assert answer["predictions"] == pytest.approx([predictor.predict_next(w) for w in windows], rel=1e-6)
    assert (answer["symbol"], answer["sequence_length"]) == ("BTC-USD", 20)
    ahead = client.post("/predict/batch", json={"windows": windows, "horizon": 3}).json()["predictions"]
    assert np.shape(ahead) == (3, 3)
    assert [steps[0] for steps in ahead] == answer["predictions"]


@pytest.mark.parametrize(
    ("bad", "message"), [([1.0, 2.0], "2 values are too few"), ([-1.0] * 20, "needs positive prices")]
)
def test_a_batch_names_the_window_that_does_not_fit(client, bad, message):
    answer = client.post("/predict/batch", json={"windows": [GOOD] * 5 + [bad, GOOD]})
    assert answer.status_code == 422
    problem = answer.json()["detail"][0]
    assert problem["loc"] == ["body", "windows", 5]
    assert message in problem["msg"]


def test_more_forecasts_than_allowed_are_refused_before_any_is_made(client):
    answer = client.post("/predict/batch", json={"windows": [GOOD] * 3, "horizon": 40})
    assert answer.status_code == 422
    assert "3 windows and a horizon of 40 are 120 forecasts; send at most 100" in answer.text


@pytest.mark.parametrize(
    ("route", "body", "remedy"),
    [
        ("/predict", {"values": []}, "send past prices as numbers"),
        ("/predict", {}, "send past prices as numbers"),
        ("/predict", {"values": GOOD, "symbol": ""}, "send a symbol of GET /models, in quotes"),
        ("/predict", {"values": GOOD, "horizon": 0}, "send a whole number from 1 to 365"),
        ("/predict", [], 'send a JSON object, for example {"values"'),
        ("/predict/batch", {"windows": []}, "send at least one window"),
        ("/predict/batch", {"windows": [[]]}, "send at least one window"),
        ("/predict/batch", {"windows": [["1", "2"]]}, "numbers, without quotes"),
        ("/predict/batch", "", 'send a JSON object, for example {"windows"'),
    ],
)
def test_a_field_that_is_wrong_is_answered_with_the_remedy_of_that_field(client, route, body, remedy):
    answer = client.post(route, json=body)
    assert answer.status_code == 422
    assert remedy in answer.json()["detail"][0]["msg"]


def test_a_symbol_is_needed_only_where_there_are_several(client, two_symbols):
    assert predictions(client, values=GOOD, symbol="BTC-USD") == predictions(client, values=GOOD)
    with serving(two_symbols) as both:
        assert [model["symbol"] for model in both.get("/models").json()["models"]] == ["BTC-USD", "ETH-USD"]
        answers = {symbol: predictions(both, values=GOOD, symbol=symbol) for symbol in ("BTC-USD", "ETH-USD")}
        assert answers["BTC-USD"]["prediction"] != answers["ETH-USD"]["prediction"]
        assert answers["ETH-USD"]["symbol"] == "ETH-USD"
        assert answers["ETH-USD"]["checkpoint_path"].endswith("eth.pt")
        assert both.get("/model", params={"symbol": "ETH-USD"}).json()["symbol"] == "ETH-USD"
        for symbol in (None, "DOGE-USD"):
            refused = both.post("/predict", json={"values": GOOD, "symbol": symbol})
            assert refused.status_code == 422
            assert "give symbol as one of: BTC-USD, ETH-USD" in refused.text
        assert both.get("/model").status_code == 422
    # Never another symbol's forecast, even if only one model is served.
    assert client.post("/predict", json={"values": GOOD, "symbol": "ETH-USD"}).status_code == 422


def test_a_window_outside_the_training_range_is_answered_counted_and_says_so(client, predictor):
    low, high = predictor.checkpoint.train_range
    assert "warnings" not in predictions(client, values=GOOD)
    client.service.measurements.take()
    answer = predictions(client, values=[*GOOD[1:], high * 1.01])
    assert answer["warnings"] == [
        f"the window has prices outside the training range of {low:g} to {high:g}; trust the forecast less"
    ]
    # Values that the model does not look at do not count.
    assert "warnings" not in predictions(client, values=[high * 2, *GOOD])
    assert client.service.measurements.take().out_of_range == {"BTC-USD": 1}


def test_every_answer_is_counted_by_route_and_status(client):
    client.service.measurements.take()
    client.post("/predict", json={"values": GOOD})
    client.post("/predict", json={"values": []})
    client.get("/model")
    client.get("/surely/not/here")
    taken = client.service.measurements.take()
    assert taken.requests == {
        ("/predict", 200): 1,
        ("/predict", 422): 1,
        ("/model", 200): 1,
        ("other", 404): 1,
    }
    assert len(taken.seconds) == 4
    assert all(0 < seconds < 10 for _, seconds in taken.seconds)
    assert not client.service.measurements.take().requests


def test_without_the_key_nothing_but_health_and_documentation_answers(tiny_checkpoint):
    with serving(tiny_checkpoint, api_key="s3cret ø") as client:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"X-API-Key": ""},
            {"Authorization": "Basic s3cret"},
        ):
            assert client.post("/predict", json={"values": GOOD}, headers=headers).status_code == 401
            assert client.post("/predict/batch", json={"windows": [GOOD]}, headers=headers).status_code == 401
            assert client.get("/model", headers=headers).status_code == 401
            assert client.get("/models", headers=headers).status_code == 401
            assert client.get("/healthz", headers=headers).status_code == 200
            assert client.get("/openapi.json", headers=headers).status_code == 200
        refused = client.get("/no/such/place")
        assert ("other", 401) in client.service.measurements.requests
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["ok"] is False
        for name, prefix in (("Authorization", "Bearer "), ("X-API-Key", "")):
            headers = {name: (prefix + "s3cret ø").encode()}
            assert client.post("/predict", json={"values": GOOD}, headers=headers).status_code == 200


def test_pages_of_the_origins_that_are_named_may_ask_and_no_others(tiny_checkpoint, client):
    with serving(tiny_checkpoint, api_key="k", cors_origins="https://a.example, https://b.example") as cors:
        preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-API-Key"}
        allowed = cors.options("/predict", headers={"Origin": "https://b.example", **preflight})
        assert allowed.headers["access-control-allow-origin"] == "https://b.example"
        assert (
            cors.options("/predict", headers={"Origin": "https://c.example", **preflight}).status_code == 400
        )
    other = client.post("/predict", json={"values": GOOD}, headers={"Origin": "https://a.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_new_model_takes_over_and_one_that_cannot_be_used_is_refused(
    tiny_result, tiny_checkpoint, tmp_path
):
    path = tmp_path / "model.pt"
    shutil.copy(tiny_checkpoint, path)
    with serving(path) as client:
        models, first = client.service.models, predictions(client, values=GOOD)
        another_model(tiny_result, path)
        assert predictions(client, values=GOOD) == first
        outcome = asyncio.run(models.replace())
        second = predictions(client, values=GOOD)
        assert outcome.refused is None
        assert outcome.versions == {"BTC-USD": Predictor(path).checkpoint.sha256}
        assert second["prediction"] != first["prediction"]

        path.write_bytes(path.read_bytes()[:1000])
        outcome = asyncio.run(models.replace())
        assert "damaged or not a checkpoint" in outcome.refused
        assert predictions(client, values=GOOD) == second
        about = client.get("/model").json()
        assert about["refused"]["reason"] == outcome.refused
        assert about["sha256"] == outcome.versions["BTC-USD"]
        another_model(tiny_result, path, bias=1e30)
        assert "cannot forecast" in asyncio.run(models.replace()).refused
        another_model(tiny_result, path)
        asyncio.run(models.replace())
        assert client.get("/model").json()["refused"] is None


def test_the_described_model_is_the_file_that_is_served(client, tiny_checkpoint, predictor):
    about = client.get("/model").json()
    assert about["sha256"] == predictor.checkpoint.sha256
    assert about["engine"] == "onnx"
    assert about["device"] == "cpu"
    assert about["train_range"] == list(predictor.checkpoint.train_range)
    assert (about["sequence_length"], about["values_used"]) == (20, 251)
    assert (about["members"], about["volatility"]) == (2, "ewma")
    assert len(about["latest_window"]) == 251
    assert about["scored_model"] is None


def test_the_model_that_was_scored_is_described_where_it_is_another(tiny_result, tmp_path):
    scored = {"split": {"train": 1000}, "trained_until": "2018-01-01", "validated_until": "2018-06-01"}
    save_checkpoint(tiny_result.checkpoint.model_copy(update={"scored_model": scored}), tmp_path / "all.pt")
    with serving(tmp_path / "all.pt") as client:
        assert client.get("/model").json()["scored_model"] == scored


class Connection:
    """One request to an ASGI application, whose body arrives when the test sends it."""

    def __init__(self, web, path="/predict", method="POST"):
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": "",
            "query_string": b"",
            "headers": [],
        }
        self.web, self.body, self.sent = web, asyncio.Queue(), []

    async def send(self, message):
        self.sent.append(message)

    def start(self):
        return asyncio.create_task(self.web(self.scope, self.body.get, self.send))

    def give(self, content, more=False):
        self.body.put_nowait({"type": "http.request", "body": content, "more_body": more})

    @property
    def status(self):
        return self.sent[0]["status"]


BODY = json.dumps({"values": GOOD}).encode()


def test_more_requests_than_the_limit_are_told_to_come_again_and_health_answers_all_the_same(tiny_checkpoint):
    web, _ = build(tiny_checkpoint, max_queued_requests=2)

    async def crowd():
        waiting = [Connection(web) for _ in range(2)]
        tasks = [connection.start() for connection in waiting]
        await asyncio.sleep(0)
        refused, health = Connection(web), Connection(web, "/healthz", "GET")
        await refused.start()
        await health.start()
        for connection in waiting:
            connection.give(BODY)
        await asyncio.gather(*tasks)
        after = Connection(web)
        after.give(BODY)
        await after.start()
        return refused, health, *waiting, after

    refused, health, *answered = asyncio.run(crowd())
    assert refused.status == 503
    assert (b"retry-after", b"1") in refused.sent[0]["headers"]
    assert "2 requests under way" in json.loads(refused.sent[1]["body"])["detail"][0]["msg"]
    assert [connection.status for connection in (health, *answered)] == [200] * 4


def test_a_body_that_does_not_arrive_and_an_answer_that_takes_too_long_end_in_time(
    tiny_checkpoint, monkeypatch
):
    web, _ = build(tiny_checkpoint, request_timeout_s=0.2)
    released = threading.Event()

    def slow_forecast(*_):
        released.wait(10)
        raise AssertionError("nobody waits for this")

    monkeypatch.setattr("serve_app.computing._forecast_piece", slow_forecast)

    async def wait_for_both():
        stalled, slow = Connection(web), Connection(web, "/predict/batch")
        stalled.give(BODY[:10], more=True)
        slow.give(json.dumps({"windows": [GOOD]}).encode())
        await asyncio.gather(stalled.start(), slow.start())
        released.set()
        return stalled.status, slow.status

    assert asyncio.run(wait_for_both()) == (408, 503)


def test_windows_that_arrive_together_are_forecast_together_and_one_bad_one_spoils_none():
    batches = []

    def forecast(windows):
        batches.append(len(windows))
        if any(window[0] < 0 for window in windows):
            raise ValueError("negative")
        return np.array([2.0 * window[0] for window in windows])

    async def ask():
        batcher = Batcher(forecast, max_batch_size=4)
        return await asyncio.gather(
            *(batcher.forecast([v]) for v in (1, 2, 3, 4, -5, 6)), return_exceptions=True
        )

    answers = asyncio.run(ask())
    assert [answer for answer in answers if not isinstance(answer, Exception)] == [2, 4, 6, 8, 12]
    assert str(answers[4]) == "negative"
    assert batches == [4, 2, 1, 1]


def test_a_large_model_computes_beside_the_event_loop(tiny_result, tmp_path):
    size = {"sequence_length": 120, "hidden_size": 128, "num_layers": 3}
    config = tiny_result.checkpoint.config.model_copy(update=size)
    state = build_network(config).state_dict()
    save_checkpoint(
        tiny_result.checkpoint.model_copy(
            update={"config": config, "model_state": state, "further_members": ()}
        ),
        tmp_path / "large.pt",
    )
    models = Models(Engines())
    asyncio.run(models.load(str(tmp_path / "large.pt")))
    model = asyncio.run(models.choose(None))
    window = [1000.0 + row for row in range(120)]
    computed_in = []
    predict = model.prices._forecast
    model.prices._forecast = lambda windows: (
        computed_in.append(threading.current_thread()),
        predict(windows),
    )[1]

    async def ask_while_the_loop_runs():
        return await asyncio.gather(*(model.prices.forecast(window) for _ in range(3)))

    assert asyncio.run(ask_while_the_loop_runs()) == pytest.approx([model.predictor.predict_next(window)] * 3)
    assert threading.main_thread() not in computed_in
    assert computed_in


def test_a_network_that_disagrees_with_torch_is_not_used(tiny_checkpoint, monkeypatch, caplog):
    assert Predictor(tiny_checkpoint, "cpu", "auto").engine.name == "onnx"
    monkeypatch.setattr(engines, "disagreement", lambda *_: 2e-5)
    with caplog.at_level(logging.WARNING):
        assert Predictor(tiny_checkpoint, "cpu", "auto").engine.name == "torch"
    assert "differs from torch by 2.0e-05" in caplog.text
    with pytest.raises(UsageError, match="engine=onnx: ONNX Runtime differs from torch"):
        Predictor(tiny_checkpoint, "cpu", "onnx")


def test_a_body_over_the_limit_is_refused_on_every_route(client):
    large = b'{"windows": [' + b" " * LIMIT + b"]}"
    assert client.post("/predict/batch", content=large).status_code == 413


def test_windows_whose_clients_have_gone_are_not_forecast():
    computed, gate = [], threading.Event()

    def forecast(windows):
        gate.wait(10)
        computed.extend(windows)
        return np.zeros(len(windows))

    async def ask():
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(forecast, max_batch_size=4, thread=thread)
            under_way = batcher.forecast([0.0])
            await asyncio.sleep(0.05)
            abandoned = [batcher.forecast([float(number)]) for number in range(1, 100)]
            for future in abandoned:
                future.cancel()
            wanted = batcher.forecast([100.0])
            gate.set()
            await asyncio.gather(under_way, wanted)
            await asyncio.sleep(0.05)
            late = batcher.forecast([101.0])
            await late

    asyncio.run(asyncio.wait_for(ask(), 10))
    assert computed == [[0.0], [100.0], [101.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_checkpoint_of_another_precision_is_refused_with_its_reason(tiny_checkpoint, tmp_path, dtype):
    live = tmp_path / "live.pt"
    live.write_bytes(tiny_checkpoint.read_bytes())
    models = Models(Engines())
    content = torch.load(tiny_checkpoint, weights_only=True)

    async def swap():
        await models.load(str(live))
        content["model_state"] = {name: value.to(dtype) for name, value in content["model_state"].items()}
        torch.save(content, live)
        return await models.replace()

    outcome = asyncio.run(swap())
    assert "only float32 can be used" in outcome.refused
    assert models.refusal.reason == outcome.refused
    assert asyncio.run(models.choose(None)).predictor.predict_next(GOOD) > 0


def test_whatever_onnx_runtime_raises_auto_falls_back_to_torch(tiny_checkpoint, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(engines.OnnxEngine, "of", broken)
    assert Predictor(tiny_checkpoint, "cpu", "auto").engine.name == "torch"
    assert "no kernel for this" in caplog.text
    with pytest.raises(UsageError, match="engine=onnx cannot run this model"):
        Predictor(tiny_checkpoint, "cpu", "onnx")


def test_a_long_horizon_forecast_in_pieces_is_that_of_one_piece(tiny_checkpoint, monkeypatch):
    with serving(tiny_checkpoint) as client:
        body = {"windows": [GOOD, GOOD[::-1]], "horizon": 7}
        whole = client.post("/predict/batch", json=body).json()["predictions"]
        monkeypatch.setattr("serve_app.computing.CHUNK_COST", 4.5 * chosen(client).cost)
        assert client.post("/predict/batch", json=body).json()["predictions"] == whole
        monkeypatch.setattr("serve_app.computing.CHUNK_COST", 1.0)
        alone = client.post("/predict/batch", json=body).json()["predictions"]
    assert np.allclose(alone, whole, rtol=1e-6)


def test_the_pieces_of_a_model_that_sees_the_bars_range_continue_with_bars(tmp_path, monkeypatch):
    columns = ("High", "Low")
    series = load_series("BTC-USD", source="snapshot", input_columns=columns)
    config = TrainConfig(
        source="snapshot",
        input_columns=columns,
        volatility="range",
        likelihood="student_t",
        sequence_length=20,
        hidden_size=8,
        num_layers=1,
        max_epochs=1,
    )
    save_checkpoint(train(series, config).checkpoint, tmp_path / "range.pt")
    body = {"values": series.matrix[-300:].tolist(), "horizon": 7, "levels": [0.9]}
    with serving(tmp_path / "range.pt") as client:
        whole = predictions(client, **body)
        monkeypatch.setattr("serve_app.computing.CHUNK_COST", 1.0)
        pieces = predictions(client, **body)
    assert pieces["predictions"] == pytest.approx(whole["predictions"], rel=1e-9)
    assert pieces["intervals"][0]["upper"] == pytest.approx(whole["intervals"][0]["upper"], rel=1e-9)


@pytest.fixture(scope="module")
def student_t(snapshot, tmp_path_factory):
    """A small model that learned a distribution."""
    config = TrainConfig(
        source="snapshot",
        likelihood="student_t",
        sequence_length=20,
        hidden_size=8,
        num_layers=1,
        max_epochs=2,
    )
    path = tmp_path_factory.mktemp("student_t") / "model.pt"
    save_checkpoint(train(snapshot, config).checkpoint, path)
    return path


@pytest.mark.parametrize("kind", ["mse", "student_t"])
def test_levels_are_answered_with_nested_intervals_around_the_forecast(kind, request, tiny_checkpoint):
    path = tiny_checkpoint if kind == "mse" else request.getfixturevalue("student_t")
    with serving(path) as client:
        answer = predictions(client, values=GOOD, levels=[0.5, 0.9])
        about = client.get("/model").json()
    expected = Predictor(path, "cpu").predict_intervals([GOOD], [0.5, 0.9])[0, 0]
    found = [(interval["lower"], interval["upper"]) for interval in answer["intervals"]]
    assert np.array(found) == pytest.approx(expected, rel=1e-6)
    assert [interval["level"] for interval in answer["intervals"]] == [0.5, 0.9]
    assert found[1][0] < found[0][0] < answer["prediction"] < found[0][1] < found[1][1]
    assert about["likelihood"] == kind
    assert about["intervals"]["test"][0]["level"] == 0.5


def test_intervals_beyond_one_step_widen_and_are_the_same_each_time(student_t):
    with serving(student_t) as client:
        first, second = (predictions(client, values=GOOD, horizon=5, levels=[0.9]) for _ in range(2))
    (interval,) = first["intervals"]
    widths = np.subtract(interval["upper"], interval["lower"])
    assert first == second
    assert len(widths) == len(first["predictions"]) == 5
    assert widths[4] > 1.5 * widths[0]
    exact = np.diff(Predictor(student_t, "cpu").predict_intervals([GOOD], [0.9])[0, 0])[0, 0]
    assert widths[0] == pytest.approx(exact, rel=1e-6)


def test_a_batch_is_answered_with_each_windows_intervals(student_t):
    windows = [GOOD, [price * 2 for price in GOOD]]
    with serving(student_t) as client:
        batch = client.post("/predict/batch", json={"windows": windows, "levels": [0.8]}).json()
        alone = [predictions(client, values=window, levels=[0.8]) for window in windows]
    for intervals, answer in zip(batch["intervals"], alone, strict=True):
        assert intervals[0]["upper"] == pytest.approx(answer["intervals"][0]["upper"], rel=1e-6)


@pytest.mark.parametrize(
    ("levels", "where", "message"),
    [
        ([0], ["body", "levels", 0], "numbers between 0 and 1"),
        ([1], ["body", "levels", 0], "numbers between 0 and 1"),
        (["0.9"], ["body", "levels", 0], "without quotes"),
        ([], ["body", "levels"], "leave levels out"),
        ([0.5] * 21, ["body", "levels"], "send 1 to 20 numbers"),
        ([0.9999], ["body", "levels"], "too high"),
    ],
)
def test_a_level_that_cannot_be_is_refused(client, levels, where, message):
    answer = client.post("/predict", json={"values": GOOD, "levels": levels})
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == where
    assert message in problem["msg"]


def test_a_level_that_many_steps_cannot_hold_is_answered_for_one_step_alone(student_t):
    with serving(student_t) as client:
        for route, window in (("/predict", {"values": GOOD}), ("/predict/batch", {"windows": [GOOD]})):
            asked = {**window, "levels": [0.5, 0.9999]}
            assert client.post(route, json=asked).status_code == 200
            assert client.post(route, json={**asked, "horizon": 1}).status_code == 200
            refused = client.post(route, json={**asked, "horizon": 2})
            assert refused.status_code == 422
            (problem,) = refused.json()["detail"]
            assert problem["loc"] == ["body", "levels"]
            assert problem["msg"] == (
                "level 0.9999 is too high: this model has intervals up to level 0.995 beyond one step; choose a lower "
                "level"
            )


def test_levels_do_not_count_towards_the_limit_of_forecasts(client):
    asked = {"values": GOOD, "levels": [0.9]}
    assert len(predictions(client, **asked, horizon=100)["predictions"]) == 100
    assert client.post("/predict", json={**asked, "horizon": 101}).status_code == 422


def test_intervals_of_250_steps_grow_about_as_the_square_root_of_the_steps(tiny_checkpoint, snapshot):
    with serving(tiny_checkpoint) as client:
        answer = predictions(client, values=snapshot.values[-251:].tolist(), horizon=250, levels=[0.9])
    (interval,) = answer["intervals"]
    widths = np.log(interval["upper"]) - np.log(interval["lower"])
    growth = widths / (widths[0] * np.sqrt(np.arange(1, 251)))
    assert len(widths) == 250
    assert ((growth > 0.5) & (growth < 3)).all()


@pytest.mark.parametrize("kind", ["mse", "student_t"])
def test_windows_of_different_lengths_are_answered_together_as_each_alone_and_as_by_the_predictor(
    kind, request, snapshot, tiny_checkpoint
):
    path = tiny_checkpoint if kind == "mse" else request.getfixturevalue("student_t")
    values, predictor = snapshot.values.tolist(), Predictor(path, "cpu")
    windows = [values[-300:], values[-320:-300], values[-500:-380]]
    with serving(path) as client:
        for steps in ({}, {"horizon": 1}, {"horizon": 3}):
            asked, horizon = {"levels": [0.5, 0.9], **steps}, steps.get("horizon", 1)
            batch = client.post("/predict/batch", json={"windows": windows, **asked}).json()
            for number, window in enumerate(windows):
                alone = predictions(client, values=window, **asked)
                points = alone["predictions"] if steps else [alone["prediction"]]
                together = batch["predictions"][number]
                assert np.ravel(together) == pytest.approx(points, rel=1e-5)
                assert points == pytest.approx(predictor.predict_steps([window], horizon)[0], rel=1e-5)
                expected = predictor.predict_intervals([window], [0.5, 0.9], horizon)[0]
                for intervals in (alone["intervals"], batch["intervals"][number]):
                    found = [np.column_stack([one["lower"], one["upper"]]) for one in intervals]
                    assert np.stack(found, axis=1) == pytest.approx(expected, rel=1e-5)


def test_a_window_shorter_than_the_model_uses_is_answered_and_says_so(client):
    assert predictions(client, values=SHORT)["warnings"] == [
        "the window has 20 values, but this model computes its volatility from 251; give 251"
    ]

    def warnings(*windows):
        return client.post("/predict/batch", json={"windows": windows}).json().get("warnings")

    assert warnings(GOOD, [1.0, *GOOD]) is None
    assert warnings(GOOD, SHORT, SHORT) == [
        "2 of the windows have 20 values, but this model computes its volatility from 251; give 251"
    ]
    assert "2 of the windows have 20 to 250 values" in warnings(SHORT, GOOD[1:])[0]


def test_a_model_of_0_1_0_uses_what_it_needs_and_so_a_window_is_never_short():
    with serving(Path(__file__).with_name("recorded") / "student_t.pt") as client:
        about = client.get("/model").json()
        assert "warnings" not in predictions(client, values=SHORT)
    assert (about["sequence_length"], about["values_used"], about["members"]) == (20, 20, 1)
    assert about["volatility"] == "window"


def test_a_model_costs_what_all_its_members_cost(client):
    model = chosen(client)
    assert model.cost == 2 * multiply_adds(model.predictor.checkpoint.config)


def test_a_checkpoint_that_knows_nothing_of_its_errors_says_so(tiny_result, tmp_path):
    save_checkpoint(
        tiny_result.checkpoint.model_copy(update={"calibration_scores": None}), tmp_path / "old.pt"
    )
    with serving(tmp_path / "old.pt") as client:
        answer = client.post("/predict", json={"values": GOOD, "levels": [0.9]})
        assert predictions(client, values=GOOD)["prediction"] > 0
        assert client.get("/model").json()["widest_level"] == 0
    assert answer.status_code == 422
    assert "made before checkpoints had any" in answer.json()["detail"][0]["msg"]


def test_levels_at_the_edge_of_what_numbers_can_say_are_refused(student_t):
    with serving(student_t) as client:
        for path, body in (("/predict", {"values": GOOD}), ("/predict/batch", {"windows": [GOOD]})):
            answer = client.post(path, json={**body, "levels": [0.9999999999999999]})
            assert answer.status_code == 422
            assert answer.json()["detail"][0]["loc"] == ["body", "levels"]


def test_simulated_intervals_of_a_stretched_model_grow_no_faster_than_those_of_a_walk(student_t, tmp_path):
    model = load_checkpoint(student_t)
    widths = []
    for score in (1.5, 0.5):
        # Without stretches of their own, intervals of many steps have that of one step.
        changes = {"calibration_scores": np.full(100, score), "horizon_stretches": {}}
        save_checkpoint(model.model_copy(update=changes), tmp_path / "model.pt")
        bounds = Predictor(tmp_path / "model.pt", "cpu").predict_intervals([GOOD], [0.8], 40)
        widths.append(np.diff(np.log(bounds[0, :, 0]), axis=-1)[:, 0])
    assert widths[0] == pytest.approx(1.5 * widths[1], rel=1e-6)
