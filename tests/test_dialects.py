"""Price files of every dialect: each is read as the prices that it holds, or refused."""

from pathlib import Path

import pytest
from dialects import EMPTY, price_files, verdict
from hypothesis import HealthCheck, given, settings

from forecast import load_series
from forecast.errors import DataError

CLOSES = [1234.5, 1250.25, 1240.0]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(file=price_files())
def test_a_file_of_any_dialect_is_read_as_it_was_written_or_refused(tmp_path: Path, file):
    found = verdict(file, tmp_path)
    assert found.kind in ("read", "refused"), found.reason


FILES = {
    "a missing cell in a column of a currency": "Date,Close\n2024-01-02,$1234.5\n2024-01-03,{empty}\n"
    "2024-01-04,$1250.25\n2024-01-05,$1240.00\n",
    "a comment with the delimiter and a date": "# a tool, 2020-01-02\n# USD\nDate;Close\n2024-01-02;1234,5\n"
    "2024-01-04;1250,25\n2024-01-05;1240,0\n",
    "a blank line below the header": "Date,Close\n\n2024-01-02,1234.5\n2024-01-04,1250.25\n2024-01-05,1240\n",
    "a comma in a text between semicolons": "Date;Close;Note\nJan 2, 24;1234.5;ok, checked\n"
    "Jan 4, 24;1250.25;late\nJan 5, 24;1240.0;ok, checked\n",
    "no-break spaces between thousands": "Date;Close\n2024-01-02;1\u00a0234,50\u00a0€\n"
    "2024-01-04;1\u202f250,25\u00a0€\n"
    "2024-01-05;1\u00a0240,00\u00a0€\n",
    "two-digit years in no order": "Date,Close\n5-Jan-24,1240\n2-Jan-24,1234.5\n4-Jan-24,1250.25\n",
    "tickers that are numbers above the names": ",600000,000001\n,Close,Close\nDate,,\n2024-01-02,1234.5,1\n"
    "2024-01-04,1250.25,1\n2024-01-05,1240,1\n",
    "rows with one delimiter more than the header": "Date\tClose\tVolume\n2024-01-02\t1234.5\t8,892,319\t\n"
    "2024-01-04\t1250.25\t1,607,593\t\n2024-01-05\t1240\t2,356,889\t\n",
}


@pytest.mark.parametrize("case", FILES)
def test_a_dialect_with_one_reading_is_read(tmp_path, case):
    path = tmp_path / "prices.csv"
    for empty in EMPTY if "{empty}" in FILES[case] else ("",):
        path.write_text(FILES[case].replace("{empty}", empty), encoding="utf-8")
        series = load_series("600000", source=str(path), notify=None)
        assert series.values.tolist() == CLOSES
        assert [str(day) for day in series.dates] == ["2024-01-02", "2024-01-04", "2024-01-05"]


def test_notes_that_look_like_the_symbol_are_not_taken_for_symbols(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text("Date,Close,Grade\n2024-01-02,1234.5,A\n2024-01-03,1250.25,B\n2024-01-04,1240,A\n")
    with pytest.raises(DataError, match="A in some rows of column Grade, on dates that no other row has"):
        load_series("A", source=str(path), notify=None)
    path.write_text("Date,Close,Stock\n2024-01-02,1234.5,A\n2024-01-02,9,B\n2024-01-03,1250.25,A\n")
    assert load_series("A", source=str(path), notify=None).values.tolist() == [1234.5, 1250.25]


@pytest.mark.parametrize("column", ["Close", "Note"])
def test_a_missing_cell_is_not_the_symbol_na(tmp_path, column):
    path = tmp_path / "prices.csv"
    cells = {"Close": "NA,ok", "Note": "1240,NA"}[column]
    path.write_text(f"Date,Close,Note\n2024-01-02,1234.5,ok\n2024-01-03,{cells}\n2024-01-04,1250.25,ok\n")
    read = load_series("NA", source=str(path), notify=None).values.tolist()
    assert read == ([1234.5, 1250.25] if column == "Close" else [1234.5, 1240.0, 1250.25])
