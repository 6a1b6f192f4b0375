"""Integrity rules: each counts its findings, and no row is lost without being counted."""

import datetime as dt

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forecast.prices.integrity import check_integrity

FUTURE = dt.date(2100, 1, 1)
rows = st.lists(
    st.tuples(
        st.integers(10_000, 10_400),
        st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(0.5, 1e5)),
    ),
    max_size=120,
)


def days(*texts):
    return np.array(texts, dtype="datetime64[D]")


def daily(count, start="2024-01-01"):
    return np.datetime64(start) + np.arange(count)


def check(dates, values, as_of=FUTURE, **options):
    matrix = np.asarray(values, dtype=float).reshape(len(values), 1)
    dates, matrix, report = check_integrity(dates, matrix, ["Close"], as_of=as_of, **options)
    return dates, matrix[:, 0], report


def found(report):
    return {rule.rule: rule.found for rule in report.rules if rule.found}


@given(rows)
def test_the_result_is_clean_and_every_row_is_accounted_for(pairs):
    dates = np.array([day for day, _ in pairs], dtype="datetime64[D]")
    clean_dates, clean, report = check(dates, [value for _, value in pairs])
    assert np.isfinite(clean).all()
    assert (clean > 0).all()
    assert (np.diff(clean_dates) > np.timedelta64(0)).all()
    counts = found(report)
    dropped = sum(counts.get(name, 0) for name in ("non_finite", "non_positive", "duplicate_dates"))
    assert report.rows_in - dropped == report.rows_out == len(clean)


@given(rows)
def test_cleaning_what_is_clean_changes_nothing(pairs):
    dates = np.array([day for day, _ in pairs], dtype="datetime64[D]")
    once = check(dates, [value for _, value in pairs])
    twice = check(once[0], once[1])
    assert np.array_equal(once[0], twice[0])
    assert np.array_equal(once[1], twice[1])
    assert set(found(twice[2])) <= {"holes", "stale_runs"}


def test_no_large_move_is_treated_as_an_error():
    values = [100.0, 63.0, 250.0, 1.0, 9e5]
    assert check(daily(5), values)[1].tolist() == values


def test_of_a_repeated_day_the_last_row_is_kept_and_disagreement_counted():
    dates = days("2024-01-01", "2024-01-02", "2024-01-02", "2024-01-02", "2024-01-03")
    _, values, report = check(dates, [1, 2, 3, 3, 4])
    assert values.tolist() == [1, 3, 4]
    rule = next(rule for rule in report.rules if rule.rule == "duplicate_dates")
    assert (rule.found, rule.detail) == (2, "1 disagreed with the next")


def test_newest_first_is_sorted_and_said():
    dates, values, report = check(daily(5)[::-1], [5, 4, 3, 2, 1])
    assert values.tolist() == [1, 2, 3, 4, 5]
    assert found(report) == {"unsorted": 4}
    assert dates[0] == np.datetime64("2024-01-01")


def test_rows_of_days_that_were_not_over_are_dropped():
    _, values, report = check(daily(5), [1, 2, 3, 4, 5], as_of=dt.date(2024, 1, 4))
    assert values.tolist() == [1, 2, 3]
    assert found(report) == {"partial_last_day": 2}
    assert "partial last day: 2, rows dropped (from 2024-01-04 on, not over yet)" in report.lines()


def sessions(first, last):
    return np.array([day for day in np.arange(first, last + 1) if np.is_busday(day)])


def test_holes_are_the_sessions_without_a_row_and_nothing_else():
    weekdays = sessions(np.datetime64("2024-01-01"), np.datetime64("2024-07-01"))
    assert found(check(weekdays, np.arange(1, len(weekdays) + 1), expected=sessions)[2]) == {}
    holes = np.delete(weekdays, [3, *range(40, 50)])
    report = check(holes, np.arange(1, len(holes) + 1), expected=sessions)[2]
    rule = next(rule for rule in report.rules if rule.rule == "holes")
    assert (rule.found, rule.action) == (2, "kept, never filled in")
    assert rule.detail == "11 sessions missing, the longest between 2024-02-23 and 2024-03-11"
    assert report.rows_out == len(holes)


def test_a_stale_run_is_reported_and_kept():
    _, values, report = check(daily(8), [1, 2, 3, 3, 3, 3, 3, 4])
    assert len(values) == 8
    assert found(report) == {"stale_runs": 1}
    assert any("5 rows from 2024-01-03" in line for line in report.lines())


def test_a_clean_series_says_so():
    assert check(daily(3), [1, 2, 3])[2].lines() == ["3 rows read, nothing to repair"]
