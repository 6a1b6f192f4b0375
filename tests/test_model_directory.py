"""A directory of many checkpoints: what is known at the start, what is loaded when, and what a damaged file spoils."""

import asyncio
import gc
import pickle
import threading
import weakref
import zipfile
from pathlib import Path

import pytest
import torch
from bodies import GOOD
from gauges import recorded_gauges
from live_ledger import live
from serving_here import build, serving

from forecast import Predictor, save_checkpoint
from forecast.errors import CheckpointError
from forecast.job_files import PICK_FILE
from forecast.live.record import Record
from forecast.live.store import CURRENT, Store
from forecast.model.checkpoint import SCHEMA_VERSION, SymbolPart
from forecast.model.header import Header, _without_weights, read_header
from serve_app.metrics import MANY, MOST_SYMBOLS, Publisher, label_of
from serve_app.models import Models
from serve_app.served_model import Engines, ServedModel

SYMBOLS = ["AAA", "BBB", "BBX", "CCC", "XBB"]


def save(tiny_result, path, symbol=None, bias=0.0):
    """Write a checkpoint of a symbol, the file's name unless given; ``bias`` changes its forecasts."""
    path.parent.mkdir(exist_ok=True)
    state = {name: value.clone() for name, value in tiny_result.checkpoint.model_state.items()}
    state["regressor.bias"] += bias
    config = tiny_result.checkpoint.config.model_copy(update={"symbol": symbol or path.stem})
    save_checkpoint(tiny_result.checkpoint.model_copy(update={"model_state": state, "config": config}), path)


@pytest.fixture
def place(tiny_result, tmp_path):
    for number, symbol in enumerate(SYMBOLS):
        save(tiny_result, tmp_path / f"{symbol}.pt", bias=number / 10)
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


def ask(client, symbol):
    return client.post("/predict", json={"symbol": symbol, "values": GOOD})


def loaded(client):
    return [model.symbol for model in client.service.models.loaded]


def test_a_header_read_without_the_weights_is_that_of_the_loaded_checkpoint(tiny_checkpoint, monkeypatch):
    whole = Header.of(Predictor(tiny_checkpoint, "cpu").whole)
    monkeypatch.delattr("forecast.model.header.load_card")  # which reads the weights
    assert read_header(tiny_checkpoint) == whole
    assert whole == Header(("BTC-USD",), False, ("Close",), 20, 251)


def pack(path, content, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", content)


def test_a_header_cannot_run_code_or_claim_more_than_its_file_holds(tiny_result, tmp_path):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    pack(tmp_path / "code.pt", pickle.dumps(Code(), protocol=2))
    pack(tmp_path / "bomb.pt", bytes(10_000_000), zipfile.ZIP_DEFLATED)
    for name, reason in (("code", "could run code|damaged"), ("bomb", "is packed")):
        with pytest.raises(CheckpointError, match=reason):
            read_header(tmp_path / f"{name}.pt")
    assert not (tmp_path / "run").exists()
    # A list of numbers that is a tensor without a storage of its size: copying it would fill the memory.
    huge = {**tiny_result.checkpoint.model_dump(), "latest_window": torch.zeros(1).expand(10_000_000)}
    torch.save({**huge, "schema_version": SCHEMA_VERSION}, tmp_path / "huge.pt")
    with pytest.raises(pickle.UnpicklingError, match="larger than the file"):
        _without_weights(tmp_path / "huge.pt")


def test_a_model_is_loaded_when_its_symbol_is_first_asked_for(place):
    with serving(place) as client:
        assert [line["symbol"] for line in client.get("/models").json()["models"]] == SYMBOLS
        assert loaded(client) == ["AAA"]
        answer = ask(client, "CCC").json()
        assert answer["prediction"] == pytest.approx(Predictor(place / "CCC.pt").predict_next(GOOD), rel=1e-6)
        assert answer["checkpoint_path"] == str(place / "CCC.pt")
        assert loaded(client) == ["AAA", "CCC"]
        assert client.get("/model", params={"symbol": "XBB"}).json()["symbol"] == "XBB"
        series = [{"symbol": symbol, "values": GOOD} for symbol in ("BBB", "XBB")]
        assert client.post("/predict/batch", json={"series": series}).json()["symbols"] == ["BBB", "XBB"]
        listed = {line["symbol"]: line["sha256"] for line in client.get("/models").json()["models"]}
        assert listed == {symbol: Predictor(place / f"{symbol}.pt").whole.sha256 for symbol in SYMBOLS}


def test_a_damaged_file_is_listed_with_the_reason_and_refuses_its_own_symbol_alone(place, tiny_result):
    truncate(place / "BBB.pt")
    # Its header is whole: only loading it finds the damage.
    save(tiny_result, place / "CCC.pt", bias=float("nan"))
    with serving(place) as client:
        for symbol, reason in (("BBB", "damaged or not a checkpoint"), ("CCC", "not finite numbers")):
            for answer in (ask(client, symbol), client.get("/model", params={"symbol": symbol})):
                assert answer.status_code == 503
                (problem,) = answer.json()["detail"]
                assert problem["type"] == "model_refused"
                assert f"{symbol}.pt" in problem["msg"]
                assert reason in problem["msg"]
                assert problem["msg"].endswith("then run `python -m serve_app reload`")
        both = {"series": [{"symbol": symbol, "values": GOOD} for symbol in ("AAA", "BBB")]}
        refused = client.post("/predict/batch", json=both)
        assert (refused.status_code, refused.json()["detail"][0]["loc"][:3]) == (503, ["body", "series", 1])
        assert all(ask(client, symbol).status_code == 200 for symbol in ("AAA", "BBX", "XBB"))
        listed = client.get("/models").json()
        assert [line["symbol"] for line in listed["models"]] == ["AAA", "BBX", "XBB"]
        assert [line["symbol"] for line in listed["unusable"]] == ["BBB", "CCC"]
        assert listed["total_unusable"] == 2
        assert "2 more cannot be used" in ask(client, "DDD").json()["detail"][0]["msg"]
        assert client.get("/healthz").status_code == 200


def test_the_one_usable_file_of_two_does_not_answer_for_the_other(place, tiny_result):
    for symbol in SYMBOLS[1:]:
        truncate(place / f"{symbol}.pt")
    with serving(place) as client:
        assert client.post("/predict", json={"values": GOOD}).status_code == 422
        assert ask(client, "AAA").status_code == 200


def test_two_files_of_a_symbol_refuse_that_symbol_and_name_both(place, tiny_result):
    model = tiny_result.checkpoint
    part = SymbolPart(**{name: getattr(model, name) for name in SymbolPart.model_fields})
    save_checkpoint(model.model_copy(update={"symbols": {"BBB": part, "PPP": part}}), place / "pool.pt")
    with serving(place) as client:
        for _ in range(2):
            refused = ask(client, "BBB")
            assert refused.status_code == 503
            assert f"{place}/pool.pt and {place}/BBB.pt both forecast BBB; keep only one" in refused.text
            assert [ask(client, symbol).status_code for symbol in ("AAA", "PPP")] == [200, 200]
            outcome = asyncio.run(client.service.models.replace())
            assert (outcome.refused, len(outcome.unusable)) == (None, 1)
        assert "was not trained on NEW" in ask(client, "NEW").json()["warnings"][0]
        (place / "BBB.pt").unlink()
        assert asyncio.run(client.service.models.replace()).unusable == ()
        assert ask(client, "BBB").status_code == 200


def test_a_directory_without_a_usable_file_is_refused_at_the_start(place, tiny_result, tmp_path_factory):
    with pytest.raises(CheckpointError, match=r"has no \.pt or \.onnx file"):
        build(tmp_path_factory.mktemp("empty"))
    for symbol in SYMBOLS:
        save(tiny_result, place / f"{symbol}.pt", bias=float("nan"))
    with pytest.raises(
        CheckpointError, match=r"AAA\.pt .*not finite numbers.* \(and 4 more files or symbols\)"
    ):
        build(place)


def test_models_not_used_for_longest_are_unloaded_and_their_memory_is_freed(place):
    with serving(place, cache_mb=0.5) as client:
        ask(client, "AAA")
        (held,) = client.service.models.loaded
        unloaded = weakref.ref(held.predictor.engine)
        gc.disable()  # what is in no cycle is freed at once
        try:
            assert ask(client, "BBB").status_code == 200
            ask(client, "AAA")
            ask(client, "CCC")
            assert loaded(client) == ["AAA", "CCC"]
            ask(client, "XBB")
            assert loaded(client) == ["CCC", "XBB"]
            assert held.predictor.predict_next(GOOD) > 0  # as for a request under way
            del held
            assert unloaded() is None
        finally:
            gc.enable()
        assert all(ask(client, symbol).status_code == 200 for symbol in SYMBOLS)


def test_a_small_directory_stays_loaded_however_large_its_models_are(place, monkeypatch):
    monkeypatch.setattr("serve_app.cache.BYTES_PER_FILE", 1e9)
    with serving(place) as client:
        assert [ask(client, symbol).status_code for symbol in SYMBOLS] == [200] * len(SYMBOLS)
        assert loaded(client) == SYMBOLS


def test_requests_for_a_model_that_is_being_loaded_wait_for_it_and_others_do_not(place, monkeypatch):
    load, gate, started = ServedModel.load, threading.Event(), []

    def slow(path, engines):
        started.append(path.stem)
        assert path.stem == "AAA" or gate.wait(10)
        return load(path, engines)

    monkeypatch.setattr(ServedModel, "load", slow)

    async def ask_together():
        models = Models(Engines())
        await models.load(str(place))
        first, gone, last = (asyncio.create_task(models.choose("CCC")) for _ in range(3))
        await asyncio.sleep(0.05)
        gone.cancel()
        assert (await models.choose("AAA")).symbol == "AAA"
        assert not first.done()
        gate.set()
        assert await first is await last

    asyncio.run(ask_together())
    assert started == ["AAA", "CCC"]


def test_a_reload_replaces_what_has_changed_and_keeps_everything_when_a_model_in_use_is_damaged(
    place, tiny_result
):
    with serving(place) as client:
        models = client.service.models
        before = {symbol: ask(client, symbol).json()["prediction"] for symbol in ("AAA", "BBB")}
        kept = asyncio.run(models.choose("AAA"))
        save(tiny_result, place / "BBB.pt", bias=0.9)
        assert ask(client, "BBB").json()["prediction"] == before["BBB"]
        (place / "BBX.pt").unlink()
        save(tiny_result, place / "NEW.pt")
        truncate(place / "CCC.pt")
        outcome = asyncio.run(models.replace())
        assert (outcome.refused, outcome.known) == (None, 4)
        assert "CCC.pt is damaged" in outcome.unusable[0]
        assert outcome.versions["BBB"] == Predictor(place / "BBB.pt").whole.sha256
        assert asyncio.run(models.choose("AAA")) is kept
        changed = ask(client, "BBB").json()["prediction"]
        assert changed != before["BBB"]
        assert [ask(client, symbol).status_code for symbol in ("NEW", "BBX", "CCC")] == [200, 422, 503]

        truncate(place / "BBB.pt")
        save(tiny_result, place / "CCC.pt")
        assert "BBB.pt is damaged" in asyncio.run(models.replace()).refused
        assert ask(client, "BBB").json()["prediction"] == changed
        assert ask(client, "CCC").status_code == 503
        assert "BBB.pt" in client.get("/model", params={"symbol": "AAA"}).json()["refused"]["reason"]


def test_a_model_in_use_stays_when_its_file_of_another_name_no_longer_tells_its_symbol(place, tiny_result):
    save(tiny_result, place / "other.pt", symbol="DDD")
    with serving(place) as client:
        assert ask(client, "DDD").status_code == 200
        truncate(place / "other.pt")
        assert "other.pt is damaged" in asyncio.run(client.service.models.replace()).refused
        assert ask(client, "DDD").status_code == 200
        (place / "other.pt").unlink()
        assert asyncio.run(client.service.models.replace()).refused is None
        assert ask(client, "DDD").status_code == 422


def test_a_refusal_names_the_symbol_that_was_asked_for(tiny_result, tmp_path):
    model = tiny_result.checkpoint
    part = SymbolPart(**{name: getattr(model, name) for name in SymbolPart.model_fields})
    state = {name: value * float("nan") for name, value in model.model_state.items()}
    damaged = model.model_copy(update={"symbols": {"PPP": part, "QQQ": part}, "model_state": state})
    save(tiny_result, tmp_path / "AAA.pt")
    save_checkpoint(damaged, tmp_path / "pool.pt")
    with serving(tmp_path) as client:
        for symbol in ("QQQ", "PPP"):
            assert f"the model of {symbol} cannot be used" in ask(client, symbol).text


def test_a_request_for_too_much_is_refused_before_it_loads_a_model(place):
    with serving(place, max_forecasts=2) as client:
        series = [{"symbol": symbol, "values": GOOD} for symbol in SYMBOLS]
        refused = client.post("/predict/batch", json={"series": series})
        assert refused.json()["detail"][0]["type"] == "too_many_forecasts"
        assert loaded(client) == ["AAA"]
        few = {"series": series[:1], "same_session": "yes"}
        assert "send true or false" in client.post("/predict/batch", json=few).json()["detail"][0]["msg"]


def test_a_file_that_changes_before_it_is_loaded_is_served_as_it_is_then(place, tiny_result):
    with serving(place) as client:
        save(tiny_result, place / "BBB.pt", bias=0.9)
        save(tiny_result, place / "CCC.pt", symbol="DDD")
        expected = Predictor(place / "BBB.pt").predict_next(GOOD)
        assert ask(client, "BBB").json()["prediction"] == pytest.approx(expected, rel=1e-6)
        refused = ask(client, "CCC")
        assert refused.status_code == 503
        assert "does not forecast CCC any more" in refused.text


def test_a_refusal_of_a_mistyped_symbol_names_those_that_are_close(place, tiny_result):
    save(tiny_result, place / "AAPL.pt")
    with serving(place) as client:
        for symbol in ("APPL", "aapl"):
            for answer in (ask(client, symbol), client.get("/model", params={"symbol": symbol})):
                assert answer.status_code == 422
                (problem,) = answer.json()["detail"]
                assert f"there is no model for {symbol!r} (did you mean AAPL" in problem["msg"]
                assert "give symbol as one of: AAA, AAPL, BBB" in problem["msg"]
        assert "did you mean" not in ask(client, "ZYZYZY").text


@pytest.fixture
def store(tiny_result, tmp_path):
    """A model store with two versions of two models, whose first versions are promoted."""
    store = Store(tmp_path / "models")
    for number, name in enumerate(("^GSPC", "EUR/USD")):
        for day in (1, 2):
            job = tmp_path / f"{number}{day}"
            save(tiny_result, job / PICK_FILE, symbol=name, bias=number + day / 10)
            store.add(name, job, f"2024-01-0{day}")
        store.promote(name, store.versions(name)[0].version)
    return store


def test_a_model_store_serves_the_current_versions_and_follows_their_changes(store):
    with serving(store.root) as client:
        models, versions = client.service.models, {name: store.versions(name) for name in store.names()}
        listed = client.get("/models").json()["models"]
        assert [line["symbol"] for line in listed] == ["EUR/USD", "^GSPC"]
        before = {}
        for name, (first, _) in versions.items():
            about = client.get("/model", params={"symbol": name}).json()
            assert (about["name"], about["version"], about["sha256"]) == (name, first.version, first.sha256)
            assert about["checkpoint_path"] == str(store.checkpoint(name, first.version))
            before[name] = ask(client, name).json()["prediction"]
        kept = asyncio.run(models.choose("EUR/USD"))
        assert asyncio.run(models.follow()) is None
        store.promote("^GSPC", versions["^GSPC"][1].version)
        outcome = asyncio.run(models.follow())
        assert outcome.refused is None
        assert outcome.versions["^GSPC"] == versions["^GSPC"][1].sha256
        assert asyncio.run(models.choose("EUR/USD")) is kept
        assert ask(client, "^GSPC").json()["prediction"] != before["^GSPC"]
        store.rollback("^GSPC")
        asyncio.run(models.follow())
        assert ask(client, "^GSPC").json()["prediction"] == before["^GSPC"]
        lines = {line["symbol"]: line for line in client.get("/models").json()["models"]}
        assert lines["^GSPC"]["version"] == versions["^GSPC"][0].version


def test_a_store_that_cannot_be_read_for_a_while_is_followed_again_once_it_is_back(store):
    with serving(store.root) as client:
        models, aside = client.service.models, store.root.with_name("aside")
        newest = store.versions("^GSPC")[1]
        assert ask(client, "^GSPC").status_code == 200
        store.promote("^GSPC", newest.version)
        store.root.rename(aside)
        store.root.symlink_to(store.root)  # neither missing nor a file: reading it fails
        assert "cannot be read (too many levels" in asyncio.run(models.follow()).refused
        assert asyncio.run(models.follow()) is None
        assert ask(client, "^GSPC").status_code == 200
        store.root.unlink()
        aside.rename(store.root)
        outcome = asyncio.run(models.follow())
        assert (outcome.refused, outcome.versions["^GSPC"], models.refusal) == (None, newest.sha256, None)


def test_a_damaged_version_is_refused_by_its_models_name_and_leaves_the_others_alone(store):
    with serving(store.root) as client:
        assert [ask(client, name).status_code for name in store.names()] == [200, 200]
        (store.directory("EUR/USD") / CURRENT).unlink()
        (store.directory("EUR/USD") / CURRENT).symlink_to("gone")
        assert "EUR/USD cannot be used" in asyncio.run(client.service.models.follow()).refused
        assert ask(client, "EUR/USD").status_code == 200
        assert asyncio.run(client.service.models.follow()) is None, "a refused version is tried once"
    with serving(store.root) as client:
        assert [line["symbol"] for line in client.get("/models").json()["unusable"]] == ["EUR/USD"]
        assert [ask(client, name).status_code for name in store.names()] == [503, 200]


def test_a_store_without_a_promoted_version_is_refused_with_the_remedy(tiny_result, tmp_path):
    save(tiny_result, tmp_path / "job" / PICK_FILE)
    store = Store(tmp_path / "models")
    store.add("AAA", tmp_path / "job", "2024-01-01")
    with pytest.raises(
        CheckpointError, match=r"no promoted version of a model; .* run `python -m tune_jobs\.update`"
    ):
        build(store.root)


def test_a_stores_ledger_is_read_beside_its_models(store):
    live(Record(store.ledger.path), "^GSPC", ["^GSPC"], [(store.current("^GSPC").sha256, 2)])
    with serving(store.root) as client:
        published = client.get("/forecast/%5EGSPC").json()
        assert published["sha256"] == client.get("/model", params={"symbol": "^GSPC"}).json()["sha256"]
        (record,) = client.get("/scores?name=%5EGSPC").json()["records"]
        assert record["version"] == store.current("^GSPC").version
        assert [event["kind"] for event in record["history"]] == ["promoted", "added", "added"]


def test_a_model_outside_of_a_store_has_no_version_there(place):
    with serving(place) as client:
        about = client.get("/model", params={"symbol": "AAA"}).json()
        assert about["name"] is about["version"] is None


def test_models_are_listed_in_pages_and_found_by_a_part_of_their_symbols(place):
    with serving(place) as client:

        def page(**query):
            answer = client.get("/models", params=query)
            assert answer.status_code == 200, answer.text
            found = answer.json()
            return [line["symbol"] for line in found["models"]], found["total"], found["next_offset"]

        assert page() == (SYMBOLS, 5, None)
        assert page(limit=2) == (["AAA", "BBB"], 5, 2)
        assert page(limit=2, offset=4) == (["XBB"], 5, None)
        assert page(offset=9) == ([], 5, None)
        assert page(q="bb") == (["BBB", "BBX", "XBB"], 3, None)
        assert page(q="bb", limit=1, offset=1) == (["BBX"], 3, 2)
        catalog = client.service.models.catalog
        catalog.by_symbol["BB"] = catalog.by_symbol["BBB"]  # the last, but the one that was typed
        assert page(q="bb", limit=2) == (["BB", "BBB"], 4, 2)
        del catalog.by_symbol["BB"]
        assert loaded(client) == ["AAA"]
        for query in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"limit": "many"}):
            refused = client.get("/models", params=query)
            assert refused.status_code == 422
            (problem,) = refused.json()["detail"]
            assert problem["loc"] == ["query", *query]
            assert f"correct {next(iter(query))} in the query" in problem["msg"]


def test_symbols_are_labels_of_metrics_only_where_there_are_few(place, tiny_result, monkeypatch):
    shown = recorded_gauges(monkeypatch)
    truncate(place / "BBB.pt")
    _, service = build(place)
    models = service.models
    Publisher().show_models(models)
    (model,) = models.loaded
    assert shown["forecast_model_info", "AAA", model.version[:12]] == 1
    states = {state: shown["forecast_symbols", state] for state in ("ready", "loaded", "refused")}
    assert states == {"ready": 3, "loaded": 1, "refused": 1}
    assert label_of("AAA", models.catalog) == "AAA"
    models.catalog.by_symbol |= dict.fromkeys(map(str, range(MOST_SYMBOLS)), models.catalog.by_symbol["AAA"])
    shown.clear()
    Publisher().show_models(models)
    assert not any(name == "forecast_model_info" for name, *_ in shown)
    assert label_of("AAA", models.catalog) == MANY
