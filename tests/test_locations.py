"""Prices from a directory of files, from addresses, and from Excel files."""

import contextlib
import datetime as dt
import gzip
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import fsspec
import numpy as np
import openpyxl
import pandas as pd
import pytest
from fsspec.registry import _registry

from forecast import load_series
from forecast.errors import DataError, SourceUnavailable, UsageError
from forecast.prices import locations

CLOSES = [10.0, 11.0, 12.5, 12.0, 13.0, 14.25]
DAYS = [dt.date(2024, 1, 10 + day) for day in range(6)]
CSV = "Date,Close\n" + "".join(f"{day},{close}\n" for day, close in zip(DAYS, CLOSES, strict=True))
SECRET = "p@ss/word & more"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.requests.append(self.path)
        path = self.path.partition("?")[0]
        if path == "/hang.csv":
            time.sleep(3)
        status, body = {
            "/prices.csv": (200, CSV.encode()),
            "/two%20words.csv": (200, CSV.encode()),
            "/download": (200, gzip.compress(CSV.encode())),
            "/page.csv": (200, b"<!DOCTYPE html><html><body>Please log in</body></html>"),
            "/private.csv": (403, b"no"),
            "/broken.csv": (500, b"no"),
        }.get(path, (404, b"nothing here"))
        if path == "/moved.csv":
            status = 302
        self.send_response(status)
        if path == "/moved.csv":
            self.send_header("Location", "/prices.csv")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(body)


@pytest.fixture(scope="module")
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.requests = []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_at_a_web_address_is_read_whatever_its_name(web):
    for path in ("/prices.csv", "/download", "/moved.csv", "/two words.csv", "/two%20words.csv"):
        series = load_series("ACME", source=web.url + path)
        assert series.values.tolist() == CLOSES
        assert series.provenance.source == series.provenance.requested == web.url + path
        assert series.provenance.retrieved == dt.datetime.now(dt.UTC).date().isoformat()


def test_a_query_reaches_the_server_as_it_was_written(web):
    query = "?symbol=ACME&from=2024-01-01T00%3A00%2B01:00&list=a,b&page=x%2Fy"
    load_series("ACME", source=f"{web.url}/prices.csv{query}")
    assert web.requests[-1] == "/prices.csv" + query


@pytest.mark.parametrize(
    ("path", "reason"),
    [("none.csv", "no such file"), ("private.csv", "access denied"), ("broken.csv", "HTTP 500")],
)
def test_a_file_that_the_server_does_not_give_is_an_unavailable_source(web, path, reason):
    with pytest.raises(SourceUnavailable, match=rf"{web.url}/{path} cannot be read \({reason}") as caught:
        load_series("ACME", source=f"{web.url}/{path}")
    assert "\n" not in str(caught.value)


def test_a_web_page_is_not_read_as_prices(web):
    with pytest.raises(DataError, match=r"/page\.csv .*web page"):
        load_series("ACME", source=f"{web.url}/page.csv")


@pytest.mark.parametrize("limit", ["SILENCE_LIMIT", "TIME_LIMIT"])
def test_a_server_that_is_silent_is_given_up(web, monkeypatch, limit):
    monkeypatch.setattr(locations, limit, 0.3)
    begun = time.monotonic()
    with pytest.raises(
        SourceUnavailable, match=r"hang\.csv\?\w+ (did not answer|cannot be read \(no answer)"
    ):
        load_series("ACME", source=f"{web.url}/hang.csv?{limit}")
    assert time.monotonic() - begun < 2.5


def test_without_a_server_or_a_network_the_address_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/prices.csv"
        with pytest.raises(SourceUnavailable, match=f"{closed} cannot be read"):
            load_series("ACME", source=closed)
    with pytest.raises(SourceUnavailable, match=r"https://no-such-host\.invalid/p\.csv cannot be read"):
        load_series("ACME", source="https://no-such-host.invalid/p.csv")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("https://joe:hunter2@example.com/p.csv", "https://joe:***@example.com/p.csv"),
        ("https://joe:hun/ter2@example.com/p.csv", "https://joe:***@example.com/p.csv"),
        ("https://joe:12345@example.com/p.csv", "https://joe:***@example.com/p.csv"),
        ("https://ghp_hunter2@example.com/p.csv", "https://***@example.com/p.csv"),
        ("https://example.com/p?a=1&apikey=hunter2&b=2", "https://example.com/p?a=1&apikey=***&b=2"),
        ("https://x.com/p?access_token=hunter2#f", "https://x.com/p?access_token=***#f"),
        ("https://x.com/p?X-Amz-Signature=hunter2&sig=hunter2", "https://x.com/p?X-Amz-Signature=***&sig=***"),
        ("s3://joe:hunter2@bucket/p.csv", "s3://joe:***@bucket/p.csv"),
        ("postgresql://joe:hun/ter2@db/m?table=p", "postgresql://joe:***@db/m?table=p"),
        ("postgresql://db/m?table=p&user=joe&password=hunter2", "postgresql://db/m?table=p&user=joe&password=***"),
    ],
)  # fmt: skip
def test_a_secret_in_clear_is_refused_and_not_shown(source, shown):
    with pytest.raises(UsageError, match="kept in checkpoints") as caught:
        load_series("ACME", source=source)
    assert f"`source` {shown}:" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "https://example.com:8080/joe@2x/p.csv",
        "https://example.com/p?gid=0&keyword=x&output=csv",
        "postgresql://joe@db/m?table=p&sslkey=/home/joe/key.pem&passfile=/home/joe/.pgpass",
        "s3://bucket/a@b.csv",
    ],
)
def test_an_address_without_a_secret_is_accepted(source):
    assert locations.resolve(source) == source


def test_a_variable_keeps_a_secret_out_of_messages_and_provenance(web, monkeypatch):
    monkeypatch.setenv("PRICES_KEY", SECRET)
    monkeypatch.setenv("PRICES_URL", f"{web.url}/prices.csv?sig=a%2Fb")
    source = f"{web.url}/prices.csv?apikey=${{PRICES_KEY}}"
    series = load_series("ACME", source=source)
    assert web.requests[-1] == f"/prices.csv?apikey={quote(SECRET, safe='')}"
    assert series.provenance.source == series.provenance.requested == source
    series = load_series("ACME", source="${PRICES_URL}")
    assert web.requests[-1] == "/prices.csv?sig=a%2Fb"
    assert series.provenance.source == series.provenance.requested == "${PRICES_URL}"
    for failing in ("none.csv", "broken.csv"):
        with pytest.raises(SourceUnavailable) as caught:
            load_series("ACME", source=f"{web.url}/{failing}?apikey=${{PRICES_KEY}}")
        assert "word" not in str(caught.value)
    monkeypatch.setenv("PRICES_URL", "http://127.0.0.1:1/prices.csv?sig=hunter2")
    with pytest.raises(SourceUnavailable, match=r"^\$\{PRICES_URL\} cannot be read") as caught:
        load_series("ACME", source="${PRICES_URL}")
    assert "hunter2" not in str(caught.value)
    monkeypatch.delenv("PRICES_KEY")
    with pytest.raises(UsageError, match="variable PRICES_KEY is not set"):
        load_series("ACME", source=source)


def test_user_and_password_from_variables_reach_the_server(web, monkeypatch):
    monkeypatch.setenv("PW", SECRET)
    source = web.url.replace("://", "://joe:${PW}@") + "/prices.csv"
    assert load_series("ACME", source=source).values.tolist() == CLOSES


def test_a_bucket_is_read_through_fsspec(tmp_path):
    with fsspec.open("memory://bucket/prices.csv.gz", "wb") as file:
        file.write(gzip.compress(CSV.encode()))
    assert load_series("ACME", source="memory://bucket/prices.csv.gz").values.tolist() == CLOSES
    (tmp_path / "prices.csv").write_text(CSV)
    assert load_series("ACME", source=f"file://{tmp_path}/prices.csv").values.tolist() == CLOSES
    with pytest.raises(SourceUnavailable, match=r"memory://bucket/none\.csv cannot be read \(no such file\)"):
        load_series("ACME", source="memory://bucket/none.csv")


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")])
def test_a_missing_driver_is_named(monkeypatch, protocol, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(_registry, protocol, raising=False)
    with pytest.raises(UsageError, match=f"needs {package}; run `pip install {package}`"):
        load_series("ACME", source=f"{protocol}://bucket/prices.csv")


def test_an_unknown_protocol_is_a_usage_error():
    with pytest.raises(UsageError, match="unknown protocol gopher"):
        load_series("ACME", source="gopher://host/prices.csv")
    with pytest.raises(UsageError, match=r"`source` yaho: give auto, yahoo, snapshot, the path"):
        load_series("ACME", source="yaho")


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("ACME.csv", "ACME"),
        ("acme.CSV", "ACME"),
        ("ACME.txt", "acme"),
        ("acme.csv.gz", "ACME"),
        ("BTC-USD.csv", "BTC/USD"),
        ("btc_usd.csv", "BTC-USD"),
        ("_GSPC.csv", "^GSPC"),
        ("BRK.B.csv", "BRK.B"),
        ("EURUSD_X.csv", "EURUSD=X"),
    ],
)
def test_a_directory_gives_the_file_of_the_symbol(tmp_path, name, symbol):
    text = CSV.encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    other = CSV.replace(",1", ",9")
    for neighbour in (
        "ACME2.csv",
        "XACME.csv",
        "ACME",
        "ACME.md",
        ".ACME.csv",
        "USD.csv",
        "BRK.csv",
        "GSPC.csv",
    ):
        (tmp_path / neighbour).write_text(other)
    (tmp_path / "ACME.parquet").mkdir()
    series = load_series(symbol, source=str(tmp_path))
    assert series.values.tolist() == CLOSES
    assert series.provenance.source == str(tmp_path)


def test_the_sign_itself_goes_before_a_sign_that_stands_for_it(tmp_path):
    (tmp_path / "BRK-B.csv").write_text(CSV.replace(",1", ",9"))
    (tmp_path / "BRK.B.csv").write_text(CSV)
    assert load_series("BRK.B", source=str(tmp_path)).values.tolist() == CLOSES


@pytest.mark.parametrize(
    ("names", "symbol", "message"),
    [
        (["AB.csv", "ABC.csv"], "ACME", r"no file of ACME, such as ACME\.csv; it has AB\.csv, ABC\.csv; choose"),
        ([f"S{n:02}.csv" for n in range(12)], "ACME", r"S09\.csv and 2 more; choose"),
        ([], "ACME", "it has no files of prices"),
        (["ACME.csv", "acme.parquet"], "ACME", r"several files of ACME \(ACME\.csv, acme\.parquet\); give one"),
        (["A-B.csv", "A_B.csv"], "A/B", r"several files of A/B"),
        (["A.B.csv"], "A_B", "no file of A_B"),
        (["passwd.csv"], "../passwd", "no file of"),
    ],
)  # fmt: skip
def test_a_directory_without_one_file_of_the_symbol_is_refused(tmp_path, names, symbol, message):
    for name in names:
        (tmp_path / name).write_text(CSV)
    with pytest.raises(DataError, match=message):
        load_series(symbol, source=str(tmp_path))


def sheet_of(path, rows, *more):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for title in more:
        book.create_sheet(title)
    book.save(path)


@pytest.mark.parametrize("shape", ["dates", "times", "text", "title"])
def test_an_excel_sheet_reads_as_it_shows(tmp_path, shape):
    rows = [["Date", "Close", "Note"]]
    for day, close in zip(DAYS, CLOSES, strict=True):
        cell = {"times": dt.datetime.combine(day, dt.time()), "text": f"{day:%d/%m/%Y}"}.get(shape, day)
        rows.append([cell, close, "x"])
    if shape == "title":
        rows = [["Prices of ACME"], [], *rows, [], ["Source: the exchange"]]
    sheet_of(tmp_path / "prices.xlsx", rows)
    series = load_series("ACME", source=str(tmp_path / "prices.xlsx"))
    assert series.values.tolist() == CLOSES
    assert [str(day) for day in series.dates] == [str(day) for day in DAYS]


def test_an_excel_file_with_two_sheets_is_refused(tmp_path):
    sheet_of(tmp_path / "prices.xlsx", [["Date", "Close"], [DAYS[0], 1.0]], "Notes")
    with pytest.raises(DataError, match=r"2 sheets \(Sheet, Notes\); keep"):
        load_series("ACME", source=str(tmp_path / "prices.xlsx"))


def test_an_excel_file_with_a_header_of_merged_cells_is_read(tmp_path):
    frame = pd.DataFrame(
        np.arange(8.0).reshape(2, 4) + 1,
        index=pd.DatetimeIndex(["2024-01-02", "2024-01-03"], name="Date"),
        columns=pd.MultiIndex.from_product([["ACME", "ZINC"], ["Open", "Close"]], names=["Ticker", "Price"]),
    )
    frame.to_excel(tmp_path / "prices.xlsx")
    assert load_series("ZINC", source=str(tmp_path / "prices.xlsx")).values.tolist() == [4, 8]
