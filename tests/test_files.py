"""Price files in the formats that people have."""

import numpy as np
import pandas as pd
import pytest

from forecast import load_series
from forecast.errors import DataError, UsageError

DATES = pd.date_range("2024-01-10", periods=6)
CLOSES = [10.0, 11.0, 12.5, 12.0, 13.0, 14.25]

YFINANCE_HEADER = """\
Price,Close,High,Low,Open,Volume
Ticker,ACME,ACME,ACME,ACME,ACME
Date,,,,,
"""


def csv(*lines, header="Date,Open,Close"):
    return "\n".join([header, *lines]) + "\n"


def rows(form="{d:%Y-%m-%d},1,{c}"):
    return [form.format(d=date, c=close) for date, close in zip(DATES, CLOSES, strict=True)]


SHAPES = {
    "plain": csv(*rows()),
    "newest first": csv(*reversed(rows())),
    "lower case": csv(*rows(), header="date,open,close"),
    "byte order mark and spaces": "\ufeff" + csv(*rows("{d:%Y-%m-%d}, 1, {c}"), header="Date, Open, Close"),
    "yfinance": YFINANCE_HEADER + "\n".join(rows("{d:%Y-%m-%d},{c},1,1,1,5")) + "\n",
    "time and zone": csv(*rows("{d:%Y-%m-%d} 00:00:00+09:00,1,{c}"), header="Datetime,Open,Close"),
    "american": csv(*rows("{d:%m/%d/%Y},1,{c}")),
    "words": csv(*rows('"{d:%b %d, %Y}",1,{c}')),
    "seconds": csv(
        *[f"{int(d.timestamp())},1,{c}" for d, c in zip(DATES, CLOSES, strict=True)], header="time,o,close"
    ),
    "milliseconds": csv(
        *[f"{int(d.timestamp() * 1000)},1,{c}" for d, c in zip(DATES, CLOSES, strict=True)],
        header="timestamp,o,close",
    ),
    "microseconds": csv(
        *[f"{int(d.timestamp()) * 10**6},1,{c}" for d, c in zip(DATES, CLOSES, strict=True)],
        header="time,o,close",
    ),
    "nanoseconds": csv(
        *[f"{int(d.timestamp()) * 10**9},1,{c}" for d, c in zip(DATES, CLOSES, strict=True)],
        header="time,o,close",
    ),
    "figures": csv(*rows("{d:%Y%m%d},1,{c}")),
    "day first": csv(*rows("{d:%d/%m/%Y},1,{c}")),
    "day first with dots, newest first": csv(*reversed(rows("{d:%d.%m.%Y},1,{c}"))),
    "yfinance without its third line": "Price,Open,Close\nTicker,ACME,ACME\n" + csv(*rows(), header="")[1:],
    "yfinance grouped by ticker": "Ticker,ACME,ACME\nPrice,Open,Close\n" + csv(*rows(), header="Date,,"),
    "one symbol, spelled otherwise": csv(*rows("{d:%Y-%m-%d},AC/ME,{c}"), header="Date,Symbol,Close"),
    "symbols in rows": csv(
        *rows("{d:%Y-%m-%d},ACME,{c}"), *rows("{d:%Y-%m-%d},ZINC,900"), header="Date,Ticker,Close"
    ),
    "saved index": csv(*rows(), header=",Open,Close"),
    "quoted thousands": csv(*rows('{d:%Y-%m-%d},"1,234.5",{c}')),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_csv_reads_as_the_same_prices(tmp_path, shape):
    path = tmp_path / "prices.csv"
    path.write_text(SHAPES[shape])
    series = load_series("ACME", source=str(path))
    assert series.values.tolist() == CLOSES
    assert [str(day) for day in series.dates] == [f"2024-01-{day}" for day in range(10, 16)]
    assert series.provenance.source == str(path)


@pytest.mark.parametrize("zone", [None, "America/New_York"])
@pytest.mark.parametrize("columns", ["plain", "by symbol"])
def test_parquet_from_a_yfinance_frame_reads_as_it_was(tmp_path, zone, columns):
    frame = pd.DataFrame({"Close": CLOSES, "Adj Close": CLOSES}, index=DATES.tz_localize(zone).rename("Date"))
    if columns == "by symbol":
        frame.columns = pd.MultiIndex.from_product([frame.columns, ["ACME"]], names=["Price", "Ticker"])
    frame.to_parquet(tmp_path / "prices.parquet")
    series = load_series("ACME", "adj close", str(tmp_path / "prices.parquet"))
    assert series.values.tolist() == CLOSES
    assert str(series.dates[0]) == "2024-01-10"


@pytest.mark.parametrize("feature", ["Adj Close", "adj_close", "AdjClose"])
def test_a_feature_is_found_whatever_its_spelling(tmp_path, feature):
    path = tmp_path / "prices.csv"
    path.write_text(csv(*rows(), header="Date,Close,Adj Close"))
    assert load_series("X", feature, str(path)).values.tolist() == CLOSES


def test_thousands_separators_are_understood(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(SHAPES["quoted thousands"])
    assert load_series("X", "Open", str(path)).values.tolist() == [1234.5] * 6


def test_of_several_symbols_the_one_asked_for_is_read(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text("Price,Close,Close\nTicker,AAA,BBB\nDate,,\n2024-01-01,1,2\n2024-01-02,3,4\n")
    assert load_series("BBB", source=str(path)).values.tolist() == [2, 4]
    with pytest.raises(DataError, match="holds AAA, BBB, not CCC; choose one of these with `symbol`"):
        load_series("CCC", source=str(path))
    path.write_text(csv("2024-01-01,AAA,1", "2024-01-01,BBB,2.5", header="date,name,close"))
    with pytest.raises(DataError, match="holds AAA, BBB, not CCC; choose one of these with `symbol`"):
        load_series("CCC", source=str(path))


def test_a_month_first_series_of_months_is_not_read_as_days_of_january(tmp_path):
    months = pd.date_range("2015-01-01", "2024-12-01", freq="MS")
    path = tmp_path / "prices.csv"
    path.write_text(csv(*[f"{month:%m/%d/%Y},1,5" for month in months]))
    series = load_series("X", source=str(path))
    assert [str(day) for day in series.dates[:3]] == ["2015-01-01", "2015-02-01", "2015-03-01"]


def test_a_column_named_exactly_as_asked_goes_before_one_of_another_case(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(csv("2024-01-01,1,9", "2024-01-02,2,9", header="Date,close,Close"))
    assert load_series("X", "close", str(path)).values.tolist() == [1, 2]


def test_null_cells_are_missing_prices_not_text(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(
        csv(
            "2024-01-01,1,5",
            "2024-01-02,null,null",
            "2024-01-03,1,",
            "2024-01-04,1,N/A",
            "2024-01-05,1,.",
            "2024-01-06,1,6",
        )
    )
    series = load_series("X", source=str(path))
    assert series.values.tolist() == [5, 6]
    assert {rule.rule: rule.found for rule in series.integrity.rules}["non_finite"] == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no file at"),
        ("empty.csv", "", "is empty"),
        ("header.csv", "Date,Close\n", "has a header but no rows"),
        ("nodate.csv", "Open,Close\n1,2\n", r"has no dates in a known form \(columns: Open, Close;"),
        (
            "baddate.csv",
            csv("2024-01-01,1,2", "soon,1,2"),
            r"column Date, row 2, has 'soon' where a date should be",
        ),
        (
            "text.csv",
            csv("2024-01-01,1,2", "2024-01-02,1,two"),
            r"column Close, row 2 \(2024-01-02\), has 'two', which is not a number",
        ),
        (
            "comma.csv",
            csv('2024-01-01,1,"1,234"', '2024-01-02,1,"2,345"'),
            r"row 1 \(2024-01-01\), has '1,234', where the sign can stand for decimals or for thousands",
        ),
        ("number.csv", csv("0,1,2", "1,1,2"), r"has no dates in a known form \(columns: Date, Open, Close;"),
        ("hole.csv", csv("1704067200,1,2", ",1,2"), r"row 2, has '' where a date should be"),
        ("feature.csv", csv("2024-01-01,1,2", header="Date,Open,High"), "choose one of: Open, High"),
        (
            "ragged.csv",
            csv("2024-01-01,1,2", "2024-01-02,1,2,3,4", "2024-01-03,1,2"),
            "with 5 fields, where the table has 3",
        ),
        ("garbage.parquet", "garbage", "is not a usable Parquet file"),
        ("nothing.csv", csv("2024-01-01,1,0", "2024-01-02,1,-3"), "has no usable Close"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line_that_names_it(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_series("X", source=str(path))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_text_are_refused(tmp_path):
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(DataError, match="is not text"):
        load_series("X", source=str(tmp_path / "binary.csv"))


def test_another_kind_of_file_and_no_file_are_refused(tmp_path):
    (tmp_path / "prices.xlsx").write_text("x")
    with pytest.raises(DataError, match="is not a usable Excel file"):
        load_series("X", source=str(tmp_path / "prices.xlsx"))
    with pytest.raises(UsageError, match="give auto, yahoo, snapshot, the path of a file"):
        load_series("X", source=str(tmp_path / "nowhere"))


def test_negative_prices_can_be_kept(tmp_path):
    path = tmp_path / "oil.csv"
    path.write_text(csv("2020-04-17,1,18.27", "2020-04-20,1,-37.63", "2020-04-21,1,10.01"))
    assert load_series("CL=F", source=str(path)).values.tolist() == [18.27, 10.01]
    kept = load_series("CL=F", source=str(path), keep_non_positive=True)
    assert np.array_equal(kept.values, [18.27, -37.63, 10.01])
