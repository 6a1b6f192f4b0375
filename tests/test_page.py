"""The page of the served application in a real browser."""

import contextlib
import json
import shlex
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest
import uvicorn
from browser import Watched
from live_ledger import live
from serving_here import build

from forecast import Predictor, save_checkpoint
from forecast.live.record import Record

KEY = "a key to the door"


@contextlib.contextmanager
def listening(checkpoint, api_key=None, **options):
    """Serve the page on a free port, and return its address."""
    with ThreadPoolExecutor(1) as pool:  # this thread's event loop drives the browser
        web, _ = pool.submit(build, checkpoint, api_key, **options).result()
    server = uvicorn.Server(uvicorn.Config(web, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(tiny_checkpoint):
    with listening(tiny_checkpoint) as address:
        yield address


@pytest.fixture
def open_page(browser):
    opened = []

    def open_(address, **settings):
        watched = Watched(browser, **settings)
        opened.append(watched)
        watched.tab.goto(address)
        return watched

    yield open_
    for watched in opened:
        watched.context.close()


def shown(tab, text="Next value"):
    """Return the answer on the page, once it contains ``text``."""
    tab.wait_for_function("text => document.getElementById('answer').textContent.includes(text)", arg=text)
    return tab.text_content("#answer")


def choose(tab, text):
    """Type a part of a symbol, and take the only one that has it."""
    tab.fill("#symbol", text)
    tab.press("#symbol", "Enter")


def rises(tab, values):
    tab.fill("#values", "\n".join(map(str, values)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_opens_with_the_models_card_and_the_forecast_of_the_latest_window(
    open_page, address, tiny_result, tiny_checkpoint, snapshot, width, scheme
):
    page = open_page(address, width=width, scheme=scheme)
    answer = shown(page.tab)
    forecast = Predictor(tiny_checkpoint, "cpu").predict_next(snapshot.values)
    assert f"{forecast:,.2f}" in answer
    assert "90 % interval" in answer
    assert page.tab.text_content("h1") == "BTC-USD Close"
    assert f"{tiny_result.test.persistence['MAE']:,.2f}" in page.tab.text_content("#metrics")
    assert "2014-11-28 to 2020-01-16" in page.tab.text_content("#facts")
    assert page.tab.locator("#chart path.band").count() == 1
    dark = page.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert dark == (scheme == "dark")
    assert page.cut_off() == 0
    assert page.errors == []
    assert page.hosts == {address.split("/")[2]}


def test_a_pasted_window_is_forecast_and_its_command_gives_the_same_answer(
    open_page, address, tiny_checkpoint
):
    page = open_page(address)
    shown(page.tab)
    values = [5000 + 7.5 * row for row in range(30)]
    page.tab.fill("#values", "")
    page.tab.focus("#values")
    page.tab.evaluate("text => document.execCommand('insertText', false, text)", ", ".join(map(str, values)))
    answer = shown(page.tab, "5,217.5")
    prediction = Predictor(tiny_checkpoint, "cpu").predict_next(values)
    assert f"{prediction:,.2f}" in answer
    assert "30 values; the model uses at most the last 251" in page.tab.text_content("#count")
    command = page.tab.text_content("#curl")
    assert command.startswith("curl -s http")
    answered = json.loads(subprocess.run(command, shell=True, check=True, capture_output=True).stdout)
    assert answered["prediction"] == pytest.approx(prediction, rel=1e-6)
    assert answered["intervals"][0]["level"] == 0.9
    assert json.loads(shlex.split(command)[-1])["values"] == values


def test_a_window_that_is_too_short_is_told_in_the_servers_words_and_a_longer_one_mends_it(
    open_page, address
):
    page = open_page(address)
    shown(page.tab)
    rises(page.tab, range(100, 103))
    problem = page.tab.locator("#problem")
    problem.wait_for(state="visible")
    assert "3 values are too few: this model needs at least 20, oldest first" in problem.text_content()
    assert page.tab.get_attribute("#values", "aria-invalid") == "true"
    assert page.tab.text_content("#answer") == ""
    rises(page.tab, range(7000, 7020))
    assert "7,019" in shown(page.tab)
    assert not problem.is_visible()


def test_what_is_no_number_is_named_before_the_server_is_asked(open_page, address):
    page = open_page(address)
    shown(page.tab)
    page.tab.fill("#values", "8710.15 8809.17 n/a")
    page.tab.locator("#problem").wait_for(state="visible")
    assert "“n/a” is not a number" in page.tab.text_content("#problem")
    # No command is shown that does not match the fields.
    assert page.tab.text_content("#curl") == page.tab.text_content("#count") == ""


def test_an_uploaded_table_is_read_oldest_first_by_the_models_column(open_page, address, tmp_path):
    page = open_page(address)
    shown(page.tab)
    rows = [f'"2020-01-{day:02d}",{day},"{7000 + day}"' for day in range(1, 26)]
    path = tmp_path / "prices.csv"
    path.write_text("\n".join(["Date,Volume,Close", *reversed(rows)]))
    page.tab.set_input_files("#file", path)
    assert "7,025" in shown(page.tab, "7,025")
    assert page.tab.input_value("#values").splitlines()[:2] == ["7001", "7002"]
    path.write_text("Date,Open\n2020-01-01,7")
    page.tab.set_input_files("#file", path)
    page.tab.locator("#problem").wait_for(state="visible")
    assert "There is no column Close; the columns are Date, Open" in page.tab.text_content("#problem")


def test_everything_is_reached_by_the_keyboard(open_page, address):
    page = open_page(address)
    shown(page.tab)
    reached = []
    for _ in range(12):
        page.tab.keyboard.press("Tab")
        reached.append(page.tab.evaluate("document.activeElement.id"))
    order = ["values", "file", "level", "horizon", "restore", "curl", "copy"]
    assert [name for name in reached if name in order] == order
    page.tab.focus("#horizon")
    page.tab.keyboard.press("ArrowUp")
    page.tab.keyboard.press("ArrowUp")
    assert "Value 3 steps ahead" in shown(page.tab, "Value 3")
    assert '"horizon":3' in page.tab.text_content("#curl")
    page.tab.focus("#level")
    page.tab.keyboard.press("End")
    page.tab.wait_for_function("() => !document.querySelector('#chart path.band')")
    assert "levels" not in page.tab.text_content("#curl")


def test_a_server_with_a_key_asks_for_it_and_tells_no_more_before(open_page, tiny_checkpoint):
    with listening(tiny_checkpoint, KEY) as address:
        page = open_page(address)
        page.tab.locator("#key").wait_for(state="visible")
        assert "send the API key" in page.tab.text_content("#about")
        assert not page.tab.locator("#main").is_visible()
        page.tab.fill("#key", KEY)
        page.tab.keyboard.press("Enter")
        assert "Next value" in shown(page.tab)
        command = page.tab.text_content("#curl")
        assert KEY not in command
        answered = subprocess.run(
            command, shell=True, check=True, capture_output=True, env={"FORECAST_API_KEY": KEY}
        )
        assert json.loads(answered.stdout)["ok"]


def test_one_of_several_models_is_chosen_by_its_symbol(open_page, tiny_result, tiny_checkpoint, tmp_path):
    config = tiny_result.checkpoint.config.model_copy(update={"symbol": "ETH-USD"})
    save_checkpoint(tiny_result.checkpoint, tmp_path / "btc.pt")
    # Like a file of the original system: nothing is known about its prices.
    unknown = {"latest_window": None, "provenance": None, "metrics_test": None}
    bare = tiny_result.checkpoint.model_copy(update={"config": config, **unknown})
    save_checkpoint(bare, tmp_path / "eth.pt")
    with listening(tmp_path) as address:
        page = open_page(address)
        shown(page.tab)
        choose(page.tab, "eth")
        page.tab.wait_for_function("() => document.querySelector('h1').textContent.startsWith('ETH-USD')")
        assert page.tab.input_value("#values") == ""
        # Nothing of the other symbol stays, and no request was sent that cannot be answered.
        assert page.tab.locator("#chart svg").count() == 0
        assert page.tab.get_attribute("#chart", "aria-label") == "No forecast yet"
        assert "upload at least 20 values" in page.tab.text_content("#count")
        assert not page.tab.locator("#problem").is_visible()
        assert page.errors == []
        rises(page.tab, range(7000, 7020))
        shown(page.tab, "7,019")
        assert '"symbol":"ETH-USD"' in page.tab.text_content("#curl")


def test_a_symbol_among_many_is_found_by_typing_and_with_the_keyboard_alone(open_page, tiny_result, tmp_path):
    for number in range(24):
        config = tiny_result.checkpoint.config.model_copy(update={"symbol": f"SYM{number:02d}"})
        save_checkpoint(
            tiny_result.checkpoint.model_copy(update={"config": config}), tmp_path / f"SYM{number:02d}.pt"
        )
    (tmp_path / "BAD.pt").write_bytes(b"")
    with listening(tmp_path) as address:
        page = open_page(address, width=390)
        shown(page.tab)
        field, options = page.tab.get_by_role("combobox", name="Symbol"), page.tab.locator("#symbols li")

        def found(text):
            page.tab.wait_for_function(
                "text => document.getElementById('found').textContent.includes(text)", arg=text
            )

        field.focus()
        found("20 of 24; type to find others")
        assert field.input_value() == "SYM00"
        page.tab.keyboard.type("m1")
        found("10 symbols")
        assert options.all_text_contents() == [f"SYM{number}" for number in range(10, 20)]
        for _ in range(3):
            page.tab.keyboard.press("ArrowDown")
        active = field.get_attribute("aria-activedescendant")
        assert page.tab.text_content(f"#{active}") == "SYM12"
        page.tab.keyboard.press("Enter")
        page.tab.wait_for_function("() => document.querySelector('h1').textContent === 'SYM12 Close'")
        shown(page.tab)
        assert '"symbol":"SYM12"' in page.tab.text_content("#curl")
        assert field.get_attribute("aria-expanded") == "false"
        for typed, remark in (("zzz", "No symbol contains “zzz”"), ("bad", "BAD cannot be used: ")):
            field.fill(typed)
            found(remark)
            page.tab.keyboard.press("Escape")
            assert field.input_value() == "SYM12"
        field.fill("20")
        options.filter(has_text="SYM20").click()
        page.tab.wait_for_function("() => document.querySelector('h1').textContent === 'SYM20 Close'")
        assert page.cut_off() == 0
        assert page.errors == []


def test_a_choice_of_a_model_that_cannot_be_had_is_told_and_taken_back(
    open_page, tiny_result, tiny_checkpoint, tmp_path
):
    config = tiny_result.checkpoint.config.model_copy(update={"symbol": "ETH-USD"})
    save_checkpoint(tiny_result.checkpoint, tmp_path / "btc.pt")
    save_checkpoint(tiny_result.checkpoint.model_copy(update={"config": config}), tmp_path / "eth.pt")
    with listening(tmp_path) as address:
        page = open_page(address)
        shown(page.tab)
        page.tab.route("**/model?symbol=ETH-USD", lambda route: route.fulfill(status=503, body="busy"))
        choose(page.tab, "eth")
        page.tab.locator("#problem").wait_for(state="visible")
        assert page.tab.text_content("#problem") == "The server answered 503"
        assert page.tab.input_value("#symbol") == "BTC-USD"


def test_a_refusal_that_comes_after_the_next_choice_changes_nothing(
    open_page, tiny_result, tiny_checkpoint, tmp_path
):
    for symbol in ("BTC-USD", "ETH-USD", "SOL-USD"):
        config = tiny_result.checkpoint.config.model_copy(update={"symbol": symbol})
        save_checkpoint(
            tiny_result.checkpoint.model_copy(update={"config": config}), tmp_path / f"{symbol}.pt"
        )
    with listening(tmp_path) as address:
        page = open_page(address)
        shown(page.tab)
        held = []
        page.tab.route("**/model?symbol=ETH-USD", lambda route: held.append(route))
        with page.tab.expect_request("**/model?symbol=ETH-USD"):
            choose(page.tab, "eth")
        choose(page.tab, "sol")
        page.tab.wait_for_function("() => document.querySelector('h1').textContent.includes('SOL-USD')")
        shown(page.tab)
        with page.tab.expect_response("**/model?symbol=ETH-USD"):
            held[0].fulfill(status=503, body="busy")
        page.tab.wait_for_timeout(200)
        assert page.tab.input_value("#symbol") == "SOL-USD"
        assert page.tab.is_hidden("#problem")


def test_an_answer_that_comes_after_the_next_question_is_not_shown(open_page, address):
    page = open_page(address)
    shown(page.tab)
    held = []

    def hold_the_first(route):
        if "5019" in route.request.post_data:
            held.append(route)
        else:
            route.continue_()

    page.tab.route("**/predict", hold_the_first)
    with page.tab.expect_request("**/predict"):
        rises(page.tab, range(5000, 5020))
    rises(page.tab, range(7000, 7020))
    assert "7,019" in shown(page.tab, "7,019")
    (first,) = held
    with contextlib.suppress(Exception):  # the page aborted it
        first.continue_()
    page.tab.wait_for_timeout(200)
    assert "7,019" in page.tab.text_content("#answer")
    assert page.errors == []


def test_a_wrong_horizon_is_marked_where_it_is(open_page, address):
    page = open_page(address)
    shown(page.tab)
    page.tab.fill("#horizon", "0")
    page.tab.locator("#problem").wait_for(state="visible")
    assert page.tab.get_attribute("#horizon", "aria-invalid") == "true"
    assert page.tab.get_attribute("#values", "aria-invalid") == "false"


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A ledger of the served symbol and of others."""
    record = Record(tmp_path_factory.mktemp("models") / "ledger.db")
    live(record, "coins", ["BTC-USD", "EUR/USD"], [("a" * 64, 30)])
    record.add_event("coins", "added", version="v1")
    record.add_event("coins", "promoted", version="v1", details={"why": "the first version"})
    record.add_event("coins", "kept", version="v2", details={"why": "no better than v1"})
    record.add_event("coins", "alarm", details={"alarm": "model_old", "text": "the model is old"})
    yield record
    record.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_published_forecast_is_shown_with_what_came_of_earlier_ones(
    open_page, tiny_checkpoint, record, width, scheme
):
    with listening(tiny_checkpoint, ledger=str(record.path)) as address:
        page = open_page(address, width=width, scheme=scheme)
        tab = page.tab
        tab.wait_for_function("() => document.querySelectorAll('#history tr').length > 1")
        found = record.forecast("BTC-USD", [0.9], 60)
        said = tab.text_content("#published")
        assert found.issued_at[:16].replace("T", " ") in said
        assert (
            f"from prices up to {found.origin}; {found.age_sessions:,} sessions have ended since then" in said
        )
        # It comes first, and the model on another window is not taken for it.
        title = tab.locator("#forecast-title")
        assert tab.locator("#published").bounding_box()["y"] < title.bounding_box()["y"]
        assert title.text_content() == "The model on a window of your choice"
        note = tab.text_content("#forecast-note")
        assert "This is not the published forecast" in note
        assert "ends with the training prices, on 2020-01-16" in note
        (step, _) = found.steps
        for text in (step.target, f"{step.prediction:.6g}", f"{step.intervals[0].upper:.6g}"):
            assert text in tab.text_content("#steps")
        inside = [
            each.intervals[0].lower <= each.realized <= each.intervals[0].upper for each in found.settled
        ]
        counts = {
            kind: tab.locator(f"#live-chart circle.{kind}").count() for kind in ("came", "missed", "point")
        }
        assert counts == {"came": sum(inside), "missed": len(inside) - sum(inside), "point": 2}
        assert f"{sum(inside)} of which were inside" in tab.get_attribute("#live-chart", "aria-label")
        ((scores,), _) = record.live()
        assert "29 sessions of 2 symbols since version v1 was promoted" in tab.text_content("#record-title")
        for skill in scores.skill:
            assert (f"{skill.ratio:.3f}" in tab.text_content("#record")) == (skill.horizon == 1)
        for covered in scores.coverage:
            assert f"{100 * covered.coverage:.1f} %" in tab.text_content("#record")
        assert "the model is old" in tab.text_content("#alarms")
        assert tab.locator("#history tr").nth(1).text_content().endswith("not promotedv2no better than v1")
        assert page.cut_off() == 0
        assert page.errors == []
        assert page.hosts == {address.split("/")[2]}


def test_a_symbol_without_a_published_forecast_has_no_such_section(open_page, tiny_result, record, tmp_path):
    for symbol in ("ETH-USD", "EUR/USD"):
        config = tiny_result.checkpoint.config.model_copy(update={"symbol": symbol})
        path = tmp_path / f"{symbol[:3]}.pt"
        save_checkpoint(tiny_result.checkpoint.model_copy(update={"config": config}), path)
    with listening(tmp_path, ledger=str(record.path)) as address:
        page = open_page(address)
        shown(page.tab)
        assert not page.tab.locator("#live").is_visible()
        assert not page.tab.locator("#forecast-note").is_visible()
        assert page.tab.text_content("#forecast-title") == "Forecast"
        choose(page.tab, "eur")
        page.tab.locator("#history").wait_for(state="visible")
        assert "EUR/USD" in page.tab.text_content("h1")
        choose(page.tab, "eth")
        page.tab.locator("#live").wait_for(state="hidden")
        assert page.errors == []


def test_browsers_ask_again_for_every_part_of_the_page(address):
    for path in ("", "assets/page.js", "assets/style.css"):
        headers = httpx.head(address + path).headers
        assert headers["cache-control"] == "no-cache"
        assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in httpx.head(address).headers["content-security-policy"]
    assert httpx.get(address + "assets/page.html").status_code == 404


def test_the_interfaces_page_needs_no_other_host(open_page, address):
    page = open_page(f"{address}docs")
    page.tab.get_by_text("Forecast the next prices of a window").wait_for()
    assert page.errors == []
    assert page.hosts == {address.split("/")[2]}


TEXTS = {
    "1 2;3\n4\t6.5e1": [1, 2, 3, 4, 65],
    "1, 2, 3": [1, 2, 3],
    "101,102,103": [101, 102, 103],
    "101,102,103,104\n105,106,107,108.5": [101, 102, 103, 104, 105, 106, 107, 108.5],
    "8,710.15 12,809": [8710.15, 12809],
    "8710.15,8809.17,\n8650.5,8700": [8710.15, 8809.17, 8650.5, 8700],
    'Date,Close,Volume\n2020-01-02,"8,809.17",2\n2020-01-01,"8,710.15",1': [8710.15, 8809.17],
    "timestamp,close\n1579132800,2\n1579046400,1": [1, 2],
    '{"values": [1.5, -2]}': [1.5, -2],
    "[1, 2]": [1, 2],
    "8,710.15\n12,809\n950.2": [8710.15, 12809, 950.2],
    "Adj Close\n1\n2": [1, 2],
    "Date;Close\n2020-01-01;1,105.5\n2020-01-02;1,106": [1105.5, 1106],
    "date;close;open\n2020-01-02;2;9\n2020-01-01;1;9": [1, 2],
    "": [],
}
REFUSED = (
    *("[1, null]", "1 NaN", "infinity", '{"prices": [1]}', "1e999", "0x10", "[1,"),
    # Ambiguous: one number or two, or which date comes first.
    *("101,102,103\n104,105,106", "100,200,\n300,400", "1,105 1,106 1,107", "Date;Close\n2020-01-01;1,105"),
    *("8710,15\n8809,17", "8710,15", "Date,Close\n01/17/2020,2\n01/16/2020,1"),
    "Date,Close\n2020-01-01,8,710",
)


def test_values_are_understood_as_people_have_them(open_page, address):
    page = open_page(address)
    for text, values in TEXTS.items():
        assert page.tab.evaluate("text => parseValues(text, ['Close'])", text) == values, text
    rows = "High,Close\n3,1\n4,2"
    assert page.tab.evaluate("text => parseValues(text, ['Close', 'High'])", rows) == [[1, 3], [2, 4]]
    assert page.tab.evaluate("parseValues('1 3\\n2, 4', ['Close', 'High'])") == [[1, 3], [2, 4]]
    for text in REFUSED:
        message = page.tab.evaluate(
            "text => { try { parseValues(text, ['C']) } catch (e) { return e.name + e.message } }", text
        )
        assert message.startswith("Error"), text


def test_numbers_are_shown_to_the_hundredth_and_an_axis_as_fine_as_its_steps(open_page, address):
    page = open_page(address)
    written = page.tab.evaluate("[12345678.9, 8710.151, 0.000123456789].map(format)")
    assert written == ["12,345,678.9", "8,710.15", "0.000123457"]
    draw = "step => formatTicks(ticks(8710.151, 8710.153, step), step)"
    names = page.tab.evaluate(draw, page.tab.evaluate("tickStep(8710.151, 8710.153, 4)"))
    assert len(set(names)) == len(names) >= 2
    assert all(8710.15 < float(name.replace(",", "")) < 8710.154 for name in names)
