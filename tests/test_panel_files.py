"""Files of many symbols as people have them: names, headers and cells that are easily read as something else."""

import numpy as np
import pandas as pd
import pytest

from forecast import load_series
from forecast.errors import DataError, UsageError
from forecast.prices.panel import load_panel

ROWS = 60
ODD_NAMES = (
    "0700",
    "000001",
    "NA",
    "TRUE",
    "NULL",
    "BRK.B",
    "B",
    "BTC/USD",
    "^GSPC",
    "XNAS:AAPL",
    "A B",
    "../x",
)
"""Names that look like numbers, like missing cells, like parts of other names, or like paths."""


def closes(*symbols):
    """Closing prices of weekdays, one column a symbol."""
    changes = 0.01 * np.random.default_rng(0).standard_t(5, (ROWS, len(symbols)))
    prices = (10 * np.exp(changes.cumsum(axis=0)) * np.arange(1, len(symbols) + 1)).round(4)
    return pd.DataFrame(prices, pd.bdate_range("2015-01-05", periods=ROWS, name="Date"), list(symbols))


def long(frame, symbol="Symbol", date="Date", price="Close"):
    return frame.stack().rename_axis([date, symbol]).rename(price).reset_index()


def bars(frame, names=("Price", "Ticker")):
    """Two columns for each symbol, under a header of two lines."""
    return pd.concat({"Close": frame, "High": 1.01 * frame}, axis=1, names=list(names))


def by_symbol(frame):
    return frame.swaplevel(axis=1).sort_index(axis=1)


def save(frame, path, name, **options):
    write = {"csv": frame.to_csv, "parquet": frame.to_parquet, "xlsx": frame.to_excel}[
        name.rpartition(".")[2]
    ]
    write(path / name, **options)
    return path / name


def assert_reads(panel, frame):
    """Each symbol has its own prices on its own days, and no symbol is left out or added."""
    assert not panel.left_out
    assert sorted(panel.series) == sorted(frame)
    for symbol, series in panel.series.items():
        expected = frame[symbol].dropna()
        assert series.values == pytest.approx(expected.to_numpy())
        assert np.array_equal(series.dates, expected.index.to_numpy().astype("datetime64[D]"))


def merged(frame):
    """A header in which a cell stands over several columns, as spreadsheets have it."""
    lines = bars(frame, (None, None)).to_csv().splitlines()
    lines[0] = "," + ",".join(name + "," * (frame.shape[1] - 1) for name in ("Close", "High"))
    return "\n".join(lines)


WIDE = {
    "columns.csv": lambda frame, file, path: save(frame, path, file),
    "columns.parquet": lambda frame, file, path: save(frame, path, file),
    "columns.xlsx": lambda frame, file, path: save(frame, path, file),
    "prefixed.csv": lambda frame, file, path: save(
        frame.add_prefix("Close_").join(frame.add_prefix("High_") * 1.01), path, file
    ),
    "pairs.csv": lambda frame, file, path: save(
        bars(frame).set_axis(map(str, bars(frame).columns), axis=1), path, file
    ),
    "price_first.csv": lambda frame, file, path: save(bars(frame), path, file),
    "ticker_first.csv": lambda frame, file, path: save(by_symbol(bars(frame)), path, file),
    "ticker_first.parquet": lambda frame, file, path: save(by_symbol(bars(frame)), path, file),
    "unnamed_levels.parquet": lambda frame, file, path: save(
        by_symbol(bars(frame, (None, None))), path, file
    ),
    "unnamed_levels.csv": lambda frame, file, path: save(by_symbol(bars(frame, (None, None))), path, file),
    "price_first.xlsx": lambda frame, file, path: save(bars(frame), path, file),
    "merged.csv": lambda frame, file, path: (path / file).write_text(merged(frame)) and path / file,
    "spaces.parquet": lambda frame, file, path: save(frame.add_suffix(" "), path, file),
    "zoned.parquet": lambda frame, file, path: save(frame.tz_localize("America/New_York"), path, file),
}
LONG = {
    "rows.csv": lambda rows: (rows, {"index": False}),
    "rows.parquet": lambda rows: (rows, {"index": False}),
    "rows.xlsx": lambda rows: (rows, {"index": False}),
    "semicolons.csv": lambda rows: (
        rows,
        {"index": False, "sep": ";", "decimal": ",", "date_format": "%d/%m/%Y"},
    ),
    "index.parquet": lambda rows: (rows.set_index(["Date", "Symbol"]), {}),
    "categories.parquet": lambda rows: (
        rows.assign(Symbol=pd.Categorical(rows["Symbol"], [*rows["Symbol"].unique(), "UNUSED"])),
        {"index": False},
    ),
    "spaces.csv": lambda rows: (rows.assign(Symbol=rows["Symbol"] + " " * 2), {"index": False}),
    "isin.csv": lambda rows: (rows.rename(columns={"Symbol": "ISIN"}), {"index": False}),
    "empty_columns.csv": lambda rows: (rows.assign(**{"Adj Close": np.nan, "Note": "", " ": ""}), {"index": False}),
    "repeated_rows.csv": lambda rows: (pd.concat([rows, rows.iloc[:30]]), {"index": False}),
    "named_twice.csv": lambda rows: (rows.assign(Name="The " + rows["Symbol"] + " company"), {"index": False}),
}  # fmt: skip


@pytest.mark.parametrize("file", WIDE)
def test_symbols_in_columns_keep_their_names_and_prices(file, tmp_path):
    frame = closes(*ODD_NAMES)
    assert_reads(load_panel(["all"], source=str(WIDE[file](frame, file, tmp_path))), frame)


@pytest.mark.parametrize("file", LONG)
def test_symbols_in_rows_keep_their_names_and_prices(file, tmp_path):
    frame = closes(*ODD_NAMES)
    rows, options = LONG[file](long(frame))
    assert_reads(load_panel(["all"], source=str(save(rows, tmp_path, file, **options))), frame)


def test_a_ticker_that_a_spreadsheet_turned_into_a_truth_value_is_read_as_it_shows(tmp_path):
    frame = closes("TRUE", "ACME")
    rows = long(frame)
    rows["Symbol"] = rows["Symbol"].map({"TRUE": True, "ACME": "ACME"})
    assert_reads(load_panel(["all"], source=str(save(rows, tmp_path, "rows.xlsx", index=False))), frame)
    columns = frame.rename(columns={"TRUE": True})
    assert_reads(load_panel(["all"], source=str(save(columns, tmp_path, "columns.xlsx"))), frame)


def test_a_ticker_with_the_name_of_a_column_of_symbols_is_one_of_the_symbols(tmp_path):
    frame = closes("CODE", "RIC", "ACME").round(1)
    assert_reads(load_panel(["all"], source=str(save(frame, tmp_path, "wide.csv"))), frame)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("{}_Close", "{}_Adj. Close"),
        ("{} Close", "{} Prev Close"),
        ("Close_{}", "Close_Adj_{}"),
        ("Close_{}", "Adj_Close_{}"),
    ],
)
def test_adjusted_and_earlier_prices_are_not_those_of_more_symbols(name, other, tmp_path):
    frame = closes("ACME", "BETA")
    columns = frame.rename(columns=name.format).join(0.9 * frame.rename(columns=other.format))
    path = str(save(columns, tmp_path, "bars.csv"))
    assert_reads(load_panel(["all"], source=path), frame)
    if other.startswith("Adj"):
        assert_reads(load_panel(["all"], source=path, feature="Adj Close"), 0.9 * frame)


def test_other_prices_of_symbols_are_not_symbols_themselves(tmp_path):
    frame = closes("ACME", "BETA")
    bars = frame.add_prefix("Open_").join(frame.add_prefix("Volume_"))
    with pytest.raises(DataError, match="has columns such as Open_ACME, but none of Close with the name"):
        load_panel(["all"], source=str(save(bars, tmp_path, "bars.csv")))
    with pytest.raises(DataError, match="does not name the symbols of its prices"):
        load_panel(["all"], source=str(save(frame.assign(Volume=1.5), tmp_path, "volume.csv")))
    pairs = closes("HIGH-USD", "OPEN-USD", "BTC-USD", "ETH-USD", "SOL-USD", "XRP-USD")
    assert_reads(load_panel(["all"], source=str(save(pairs, tmp_path, "pairs.csv"))), pairs)


@pytest.mark.parametrize("layout", ["long", "wide", "levels"])
def test_what_the_cells_of_one_symbol_prove_they_prove_for_all(layout, tmp_path):
    frame = closes("ACME", "BETA").round(2)
    frame["LOW"] = (frame["ACME"] / 7 + 0.0001).round(3)
    cells = frame.copy().astype(object)
    for symbol, digits in (("ACME", 2), ("BETA", 2), ("LOW", 3)):
        cells[symbol] = [f"{price:.{digits}f}".replace(".", ",") for price in frame[symbol]]
    rows = {"wide": cells, "long": long(cells), "levels": pd.concat({"Close": cells}, axis=1)}[layout]
    path = save(rows, tmp_path, "brazil.csv", sep=";", index=layout != "long")
    assert_reads(load_panel(["all"], source=str(path)), frame)


def test_a_decimal_sign_that_makes_a_price_jump_a_thousandfold_is_not_taken_from_other_symbols(tmp_path):
    rows = long(closes("ACME", "BETA")).astype({"Close": object})
    thousands = np.linspace(950, 1100, ROWS)
    rows.loc[rows["Symbol"] == "BETA", "Close"] = [f"{price:,.0f}".replace(",", ".") for price in thousands]
    path = str(save(rows, tmp_path, "rows.csv", index=False))
    panel = load_panel(["all"], source=path)
    assert list(panel.series) == ["ACME"]
    assert "can stand for decimals or for thousands" in panel.left_out["BETA"]


def test_symbols_that_prove_opposite_decimal_signs_settle_nothing_for_another(tmp_path):
    rows = long(closes("ACME", "BETA", "LOW").round(2)).astype({"Close": object})
    written = {
        "ACME": "{:.2f}".format,
        "BETA": lambda price: f"{price:.2f}".replace(".", ","),
        "LOW": "{:.3f}".format,
    }
    rows["Close"] = [
        written[symbol](price) for symbol, price in zip(rows["Symbol"], rows["Close"], strict=True)
    ]
    rows["Volume"] = [f"{1234567 + row:,}" for row in range(len(rows))]
    panel = load_panel(["all"], source=str(save(rows, tmp_path, "rows.csv", index=False, sep=";")))
    assert list(panel.left_out) == ["LOW"]


def test_dates_of_one_symbol_that_could_be_read_in_two_ways_follow_the_others(tmp_path):
    frame = closes("ACME", "SHORT")
    frame.loc[frame.index.day > 12, "SHORT"] = np.nan
    rows = long(frame).sample(frac=1, random_state=0)
    path = save(rows, tmp_path, "shuffled.csv", index=False, date_format="%d/%m/%Y")
    assert_reads(load_panel(["all"], source=str(path)), frame)


@pytest.mark.parametrize("column", ["Date", "Close"])
def test_a_bad_cell_costs_only_the_symbol_of_its_row(column, tmp_path):
    frame = closes("ACME", "BETA")
    rows = long(frame).astype({"Date": str, "Close": object})
    rows.loc[rows.index[10], column] = "halted"
    panel = load_panel(["all"], source=str(save(rows, tmp_path, "rows.csv", index=False)))
    assert list(panel.series) == ["BETA"]
    assert "has 'halted'" in panel.left_out["ACME"]
    cells = frame.astype(object)
    cells.iloc[10, 0] = "halted"
    panel = load_panel(["all"], source=str(save(cells, tmp_path, "wide.csv")))
    assert list(panel.series) == ["BETA"]
    assert "has 'halted'" in panel.left_out["ACME"]


@pytest.mark.parametrize("file", ["rows.csv", "rows.parquet"])
def test_rows_without_a_symbol_are_counted_once_and_left_out(file, tmp_path):
    rows = long(closes("ACME", "BETA"))
    rows.loc[rows.index[4:10], "Symbol"] = None
    said = []
    path = save(rows, tmp_path, file, index=False)
    panel = load_panel(["all"], source=str(path), notify=said.append)
    assert {symbol: len(series) for symbol, series in panel.series.items()} == {
        "ACME": ROWS - 3,
        "BETA": ROWS - 3,
    }
    assert said == [f"{path} has 6 rows without a symbol; they are left out"]
    rows = rows.astype({"Date": str})
    rows.loc[rows.index[20], "Date"] = "halted"
    path = save(rows, tmp_path, file, index=False)
    panel = load_panel(["all"], source=str(path), notify=said.append)
    assert list(panel.series) == ["BETA"]
    assert len(said) == 2


def test_a_symbol_that_is_written_in_two_ways_is_not_read_in_halves(tmp_path):
    rows = long(closes("ACME", "BETA"))
    rows.loc[rows.index[60:], "Symbol"] = rows["Symbol"].replace("ACME", "Acme")
    path = str(save(rows, tmp_path, "rows.csv", index=False))
    panel = load_panel(["all"], source=path)
    assert list(panel.series) == ["BETA"]
    assert panel.left_out["ACME"].endswith("has ACME and Acme; write the symbol in one way")
    with pytest.raises(DataError, match="has ACME and Acme; write"):
        load_series("ACME", source=path)
    wide = closes("ACME", "acme", "BETA")
    assert list(load_panel(["all"], source=str(save(wide, tmp_path, "wide.csv"))).series) == ["BETA"]


def test_a_symbol_without_prices_and_one_with_two_prices_a_day_cost_only_themselves(tmp_path):
    frame = closes("ACME", "GONE", "LATE")
    frame["GONE"] = np.nan
    frame.loc[frame.index[:30], "LATE"] = np.nan
    panel = load_panel(["all"], source=str(save(bars(frame), tmp_path, "yahoo.csv")))
    assert {symbol: len(series) for symbol, series in panel.series.items()} == {
        "ACME": ROWS,
        "LATE": ROWS - 30,
    }
    assert "none of them good" in panel.left_out["GONE"]
    rows = long(frame.drop(columns="GONE"))
    listed_twice = pd.concat(
        [rows, rows[rows["Symbol"] == "LATE"].assign(Close=lambda these: 1.1 * these["Close"])]
    )
    panel = load_panel(["all"], source=str(save(listed_twice, tmp_path, "rows.csv", index=False)))
    assert list(panel.series) == ["ACME"]
    assert "several rows with different prices" in panel.left_out["LATE"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda rows: rows.rename(columns={"Close": "Adj Close"}), "no feature 'Close'; choose one of: .*Adj Close"),
        (lambda rows: rows.rename(columns={"Symbol": "Group"}), "does not name the symbols of its prices"),
        (lambda rows: rows.assign(Asset="Equity"), r"several columns of symbols \(Symbol, Asset\); choose one"),
    ],
)  # fmt: skip
def test_a_file_that_leaves_a_choice_is_refused_with_the_choice(rows, message, tmp_path):
    path = save(rows(long(closes("ACME", "BETA"))), tmp_path, "rows.csv", index=False)
    with pytest.raises(DataError, match=message):
        load_panel(["all"], source=str(path))


def test_names_in_a_file_are_separated_by_spaces_commas_or_lines(tmp_path):
    names = tmp_path / "names.txt"
    names.write_bytes("\ufeffACME, BETA;0700\r\nNA\n".encode())
    frame = closes("ACME", "BETA", "0700", "NA")
    path = save(frame, tmp_path, "wide.csv")
    assert list(load_panel([f"@{names}"], source=str(path)).series) == list(frame)


def test_a_file_of_names_that_cannot_be_read_is_one_line_with_the_reason_and_the_remedy(tmp_path):
    (tmp_path / "names.xlsx").write_bytes(b"PK\xff\xfe")
    for name, reason in (
        ("nofile", "No such file or directory"),
        (".", "Is a directory"),
        ("names.xlsx", "it is not text in UTF-8"),
    ):
        listed = f"@{tmp_path / name}"
        with pytest.raises(UsageError) as caught:
            load_panel([listed], source="prices.csv")
        assert str(caught.value) == (
            f"`symbols` {listed}: the file of names cannot be read ({reason}); give @ and the path of a text file"
        )


def test_the_prices_of_another_symbol_can_be_an_input_of_each(tmp_path):
    frame = closes("ACME", "BETA", "MARKET")
    path = save(frame, tmp_path, "wide.csv")
    panel = load_panel(["ACME", "BETA"], source=str(path), input_columns=("MARKET",))
    for symbol, series in panel.series.items():
        assert series.columns == ("Close", "MARKET")
        assert series.matrix == pytest.approx(frame[[symbol, "MARKET"]].to_numpy())


def test_of_a_name_within_another_only_the_whole_one_is_meant(tmp_path):
    frame = closes("B", "BRK.B", "A")
    columns = frame.add_suffix(".Close").join(frame.add_suffix(".Open") * 2)
    assert_reads(load_panel(["all"], source=str(save(columns, tmp_path, "bars.csv"))), frame)


def test_stacked_symbols_beside_prices_with_the_names_of_symbols_are_refused(tmp_path):
    rows = pd.concat({symbol: closes("ONE", "TWO") for symbol in ("ACME", "BETA")}, names=["group"])
    path = save(rows.reset_index(), tmp_path, "stacked.csv", index=False)
    with pytest.raises(DataError, match="has ACME, BETA in column group, one after the other"):
        load_panel(["all"], source=str(path))


def test_one_symbol_of_a_file_with_a_column_for_each_is_read_as_the_panel_reads_it(tmp_path):
    days = pd.bdate_range("2020-01-01", periods=40, name="Date")
    frame = pd.DataFrame({"ACME": range(100, 140), "BETA": range(300, 340)}, index=days, dtype=float)
    frame.to_csv(tmp_path / "closes.csv")
    source = str(tmp_path / "closes.csv")
    alone = load_series("BETA", source=source)
    assert alone.feature == "Close"
    assert alone.values.tolist() == frame["BETA"].tolist()
    assert alone.provenance.sha256 == load_panel(("all",), source=source).series["BETA"].provenance.sha256
    with pytest.raises(DataError, match="'Close'"):
        load_series("CORP", source=source)
