"""Trading calendars: sessions and hours of real exchanges, the bars that follow, and the calendar that rows have."""

import warnings

import numpy as np
import pytest

from forecast.errors import DataError, UsageError
from forecast.prices.calendars import (
    BarGrid,
    Calendar,
    choose_calendar,
    fit_grid,
    get,
    measure_fit,
    zone_of_naive,
)
from forecast.prices.intervals import INTERVALS, parse_interval

HOUR = 3600


def day(text):
    return np.datetime64(text, "D")


def days(*texts):
    return np.array(texts, "datetime64[D]")


def times(*texts):
    return np.array(texts, "datetime64[s]")


def texts(array):
    return [str(item) for item in array]


def sessions(name, first="2015-01-01", last="2024-12-31"):
    return get(name).sessions(day(first), day(last))


def bars(name, first, last=None, **grid):
    return get(name).bars(day(first), day(last or first), BarGrid(**{"seconds": HOUR} | grid))


def choose(dates, interval="1d", symbol="x", **options):
    choice = choose_calendar(dates, interval=interval, symbol=symbol, **options)
    return choice.calendar.name, choice


def test_a_half_day_closes_early():
    opens, closes = get("XNYS").open_close(days("2019-11-27", "2019-11-29"))
    assert texts(opens) == ["2019-11-27T14:30:00", "2019-11-29T14:30:00"]
    assert texts(closes) == ["2019-11-27T21:00:00", "2019-11-29T18:00:00"]
    assert len(bars("XNYS", "2019-11-29")) == 4


def test_hourly_bars_move_in_utc_when_the_clocks_change():
    first = [str(bars("XNYS", date)[0]) for date in ("2020-03-06", "2020-03-09")]
    assert first == ["2020-03-06T14:30:00", "2020-03-09T13:30:00"]


@pytest.mark.parametrize(
    ("name", "hours"),
    [
        ("XTKS", ["00:00", "01:00", "02:00", "03:30", "04:30", "05:30"]),
        ("XHKG", ["01:30", "02:30", "03:30", "05:00", "06:00", "07:00"]),
    ],
)
def test_the_grid_starts_anew_after_the_lunch_break(name, hours):
    stamps = bars(name, "2023-06-01")
    assert [text[11:16] for text in texts(stamps)] == hours
    ends = get(name).closes(stamps, "1h")
    assert ends[2] - stamps[2] == np.timedelta64(30, "m")


def test_hours_on_the_clock_begin_short_after_a_half_past_open():
    assert [text[11:16] for text in texts(bars("XNYS", "2023-06-01", anchor="clock"))[:2]] == [
        "13:30",
        "14:00",
    ]
    assert [text[11:16] for text in texts(bars("XNYS", "2023-06-01", anchor="clock_early"))[:2]] == [
        "13:00",
        "14:00",
    ]
    assert [text[11:16] for text in texts(bars("XBOM", "2023-06-01", anchor="clock"))[:2]] == [
        "03:45",
        "04:30",
    ]


def test_a_bar_ends_at_the_close_at_the_latest_and_may_bear_its_end():
    assert str(bars("XNYS", "2023-06-01", label="end")[-1]) == "2023-06-01T20:00:00"
    assert str(get("XNYS").closes(times("2023-06-01T19:30"), "1h")[0]) == "2023-06-01T20:00:00"
    ending = times("2023-06-01T14:30", "2023-06-01T20:00")
    assert np.array_equal(get("XNYS").closes(ending, "1h", BarGrid(HOUR, label="end")), ending)


def test_a_session_that_begins_the_evening_before_has_all_its_bars():
    stamps = bars("CMES", "2023-06-05")
    assert (str(stamps[0]), str(stamps[-1]), len(stamps)) == (
        "2023-06-04T22:00:00",
        "2023-06-05T21:00:00",
        24,
    )
    following = get("CMES").next_bars(np.datetime64("2023-06-02T21:00:00"), "1h", 1)
    assert texts(following) == ["2023-06-04T22:00:00"]


def test_the_next_session_skips_holidays_and_weekends():
    assert texts(get("XNYS").next_bars(day("2019-07-03"), "1d", 2)) == ["2019-07-05", "2019-07-08"]
    assert texts(get("BVMF").next_bars(day("2024-02-09"), "1d", 1)) == ["2024-02-14"]
    assert texts(get("XTKS").next_bars(day("2019-04-26"), "1d", 1)) == ["2019-05-07"]


def test_the_next_bar_of_an_hour_goes_over_the_weekend():
    last = np.datetime64("2023-06-02T18:30:00")
    assert texts(get("XNYS").next_bars(last, "1h", 2)) == ["2023-06-02T19:30:00", "2023-06-05T13:30:00"]


def test_a_long_horizon_has_as_many_bars_as_asked_for():
    following = get("XNYS").next_bars(day("2024-12-31"), "1d", 1000)
    assert len(following) == 1000
    assert (np.diff(following) > np.timedelta64(0)).all()


def test_every_day_and_every_hour_is_open_around_the_clock():
    always = get("24/7")
    assert texts(always.next_bars(day("2023-12-30"), "1d", 3)) == ["2023-12-31", "2024-01-01", "2024-01-02"]
    assert texts(always.next_bars(np.datetime64("2023-12-31T23:00:00"), "1h", 1)) == ["2024-01-01T00:00:00"]
    assert texts(always.closes(days("2023-12-31"), "1d")) == ["2024-01-01T00:00:00"]
    assert always.zone == "UTC"
    assert always.count_sessions(day("2023-01-01"), day("2024-01-01")) == 365


def test_plain_days_agree_with_the_library():
    import exchange_calendars

    for name in ("24/7", "24/5"):
        with warnings.catch_warnings(action="ignore"):
            table = exchange_calendars.get_calendar(name, start="2023-01-01", end="2024-12-31").schedule
        ours = sessions(name, "2023-01-01")
        assert np.array_equal(ours, table.index.to_numpy().astype("datetime64[D]"))
        closes = table["close"].dt.tz_localize(None).to_numpy().astype("datetime64[s]")
        assert np.array_equal(get(name).open_close(ours)[1], closes)


@pytest.mark.parametrize(
    ("last", "following"),
    [
        (["2024-03-11"], ["2024-03-18", "2024-03-25"]),  # Mondays
        (["2024-03-15"], ["2024-03-22", "2024-03-28"]),  # last sessions: Good Friday is closed
        (["2024-03-17"], ["2024-03-24", "2024-03-31"]),  # Sundays
        (["2024-01-16"], ["2024-01-22", "2024-01-29"]),  # a first session: Monday was closed
        (["2024-01-08", "2024-01-16", "2024-02-12"], ["2024-02-20", "2024-02-26"]),  # first sessions
    ],
)
def test_weeks_go_on_with_the_labels_they_have(last, following):
    assert texts(get("XNYS").next_bars(days(*last), "1wk", 2)) == following


@pytest.mark.parametrize(
    ("last", "following"),
    [
        (["2024-05-01"], ["2024-06-01", "2024-07-01"]),  # first days
        (["2024-04-01", "2024-05-01", "2024-06-03"], ["2024-07-01", "2024-08-01"]),  # first sessions
        (["2024-06-28"], ["2024-07-31", "2024-08-30"]),  # last sessions
        (["2024-06-30"], ["2024-07-31", "2024-08-31"]),  # last days
        (
            ["2024-03-31", "2024-05-31"],
            ["2024-06-30", "2024-07-31"],
        ),  # last days, the last one also a session
    ],
)
def test_months_go_on_with_the_labels_they_have(last, following):
    assert texts(get("XNYS").next_bars(days(*last), "1mo", 2)) == following


def test_a_label_in_the_middle_of_a_period_is_not_continued():
    assert get("XNYS").next_bars(day("2024-05-15"), "1mo", 1) is None
    assert get("XNYS").next_bars(day("2024-05-15"), "1wk", 1) is None
    assert get("XNYS").next_bars(days("2024-05-01", "2024-06-28"), "1mo", 1) is None


def test_a_week_without_a_session_has_no_bar():
    assert texts(get("XSHG").next_bars(day("2023-09-25"), "1wk", 1)) == ["2023-10-09"]


def test_a_week_and_a_month_end_with_their_last_session():
    assert texts(get("XNYS").closes(days("2024-03-25"), "1wk")) == ["2024-03-28T20:00:00"]
    assert texts(get("XNYS").closes(days("2024-06-01", "2024-06-30"), "1mo")) == ["2024-06-28T20:00:00"] * 2


def test_a_bar_that_the_calendar_lacks_has_no_end():
    assert np.isnat(get("XNYS").closes(days("2024-12-25", "2024-12-26"), "1d")).tolist() == [True, False]
    assert np.isnat(get("XNYS").closes(times("2024-12-26T14:30", "2024-12-26T14:40"), "1h")).tolist() == [
        False,
        True,
    ]
    assert np.isnat(get("XBOM").closes(days("1990-01-02", "2020-01-02"), "1d")).tolist() == [True, False]
    assert np.isnat(get("XBOM").closes(days("1990-01-02"), "1mo")).all()


def test_nothing_is_invented_outside_the_years_a_calendar_knows():
    calendar = get("XTKS")
    assert not calendar.covers(day("1990-01-01"), day("2000-01-01"))
    with pytest.raises(DataError, match="XTKS knows no sessions before 1997-01-01"):
        calendar.sessions(day("1990-01-01"), day("2000-01-01"))
    bound = get("XBOM").last_day
    assert get("XBOM").next_bars(bound, "1d", 1) is None
    assert get("XBOM").next_bars(bound - 10, "1d", 100) is None
    assert get("XBOM").next_bars(bound.astype("datetime64[M]").astype("datetime64[D]"), "1mo", 1) is None
    assert get("XBOM").next_bars(bound.astype("datetime64[s]"), "1h", 100) is None
    assert get("XTKS").next_bars(day("1990-01-01"), "1wk", 1) is None


def test_old_and_far_dates_are_known_where_there_is_no_bound():
    assert len(sessions("XNYS", "1928-01-01", "1928-12-31")) > 250
    assert day("2031-07-04") not in sessions("XNYS", "2031-01-01", "2031-12-31")


def test_answers_do_not_depend_on_the_questions_before():
    late = get("XKRX").open_close(days("2026-11-30"))
    get("XKRX").sessions(day("1998-01-01"), day("2026-11-30"))
    assert np.array_equal(late, get("XKRX").open_close(days("2026-11-30")))


def test_a_date_without_a_session_has_no_open():
    with pytest.raises(DataError, match="2024-12-25 is not a session of XNYS"):
        get("XNYS").open_close(days("2024-12-24", "2024-12-25"))


def test_sessions_are_counted_after_one_date_and_up_to_another():
    assert get("XNYS").count_sessions(day("2019-11-27"), day("2019-12-02")) == 2
    assert get("XNYS").count_sessions(day("2019-12-02"), day("2019-12-02")) == 0


def test_a_calendar_has_many_names():
    assert get("xnys") is get("NYSE") is get("XNAS") is get("XNYS")
    assert get("bvmf").name == "BVMF"
    assert get("BVMF").zone == "America/Sao_Paulo"


def test_an_unknown_calendar_is_refused_with_names_that_are_close():
    with pytest.raises(UsageError, match=r"`calendar` must be .* not 'XNSY'; did you mean .*XNYS"):
        get("XNSY")
    with pytest.raises(UsageError, match="all names: https://"):
        get("???")


def test_a_calendar_that_the_library_cannot_compute_is_refused_and_not_chosen(monkeypatch):
    def fail(**_):
        raise NotImplementedError

    calendar = Calendar("XWAR", get("XWAR")._factory)
    monkeypatch.setattr(calendar, "_factory", fail)
    with pytest.raises(DataError, match=r"cannot compute the calendar XWAR .* choose another `calendar`"):
        calendar.sessions(day("2020-01-01"), day("2020-12-31"))
    assert measure_fit(calendar, sessions("XNYS"), "1d") is None


@pytest.mark.parametrize("name", ["XNYS", "XLON", "XETR", "BVMF", "XTKS"])
def test_an_exchange_is_recognised_from_its_dates_although_some_are_missing(name):
    dates = np.delete(sessions(name), [40, 41, 300, 1000])
    chosen, choice = choose(dates)
    assert chosen == name
    assert choice.fit.rows == 1
    assert 0.99 < choice.fit.sessions < 1


def test_weekdays_without_holidays_and_all_days_are_recognised():
    every = np.arange(day("2020-01-01"), day("2024-01-01"))
    assert choose(every)[0] == "24/7"
    assert choose(every[np.is_busday(every)])[0] == "24/5"


def test_rows_that_fit_no_exchange_are_not_given_one():
    rng = np.random.default_rng(0)
    every = np.arange(day("2015-01-01"), day("2024-01-01"))
    weekdays = every[np.is_busday(every)]
    name, choice = choose(np.sort(rng.choice(weekdays, 400, replace=False)), symbol="PETR4.SA")
    assert name == "24/5"
    assert choice.fit.sessions < 0.2
    assert "rows do not fit BVMF" in choice.reason
    assert choose(np.sort(rng.choice(every, 400, replace=False)))[0] == "24/7"


def test_an_exchange_with_a_few_other_holidays_is_not_claimed():
    name, choice = choose(sessions("XWAR"))
    assert name == "24/5"
    assert choice.fit.rows == 1


def test_a_few_rows_on_weekends_do_not_make_a_market_that_never_closes():
    weekends = days(*[f"2015-{month:02}-01" for month in (2, 3, 8, 11)], "2016-05-01", "2016-10-01")
    rows = np.sort(np.append(sessions("XNYS", "2015-01-01", "2016-12-30"), weekends))
    name, choice = choose(rows)
    assert name == "24/5"
    assert 0.98 < choice.fit.rows < 1
    assert choose(rows, exchange="NYQ")[0] == "XNYS"


@pytest.mark.parametrize(
    ("symbol", "exchange", "name"),
    [
        ("AAPL", "NMS", "XNYS"),
        ("^BVSP", "SAO", "BVMF"),
        ("ANY", "nyse arca", "XNYS"),
        ("ANY", "XWAR", "XWAR"),
        ("PETR4.SA", None, "BVMF"),
        ("VOD.L", None, "XLON"),
        ("SAP.DE", None, "XETR"),
        ("7203.T", None, "XTKS"),
        ("RELIANCE.NS", "no such exchange", "XBOM"),
        ("BTC-USD", "CCC", "24/7"),
        ("ETH-EUR", None, "24/7"),
        ("EURUSD=X", "CCY", "24/5"),
    ],
)
def test_the_exchange_or_the_form_of_the_symbol_names_the_calendar(symbol, exchange, name):
    dates = sessions(name, "2020-01-01")
    assert choose(dates, symbol=symbol, exchange=exchange)[0] == name


def test_a_share_with_a_dash_or_a_dot_is_no_cryptocurrency_and_on_no_foreign_exchange():
    for symbol in ("BRK-B", "BRK.B"):
        assert choose(sessions("XNYS"), symbol=symbol)[0] == "XNYS"


def test_rows_of_weekdays_are_not_those_of_a_cryptocurrency():
    name, choice = choose(sessions("XNYS"), symbol="BTC-USD")
    assert name == "XNYS"
    assert "rows do not fit 24/7" in choice.reason


def test_calendars_that_fit_equally_are_named():
    choice = choose(sessions("XNYS", "2024-09-03", "2024-10-10"))[1]
    assert choice.fit.rows == choice.fit.sessions == 1
    assert "would fit as well" in choice.reason


@pytest.mark.parametrize("name", ["XNYS", "XTKS", "BVMF"])
@pytest.mark.parametrize("label", ["start", "end"])
def test_an_exchange_is_recognised_from_its_hours(name, label):
    assert choose(bars(name, "2024-01-02", "2024-06-28", label=label), "1h")[0] == name


def test_months_labelled_by_first_days_claim_no_exchange():
    months = np.arange("2015-01", "2024-01", dtype="datetime64[M]").astype("datetime64[D]")
    assert choose(months, "1mo")[0] == "24/5"
    assert choose(months, "1mo", symbol="VALE3.SA")[0] == "BVMF"


def test_rows_outside_the_bounds_do_not_count_against_a_calendar():
    assert measure_fit(get("XTKS"), days("1980-01-02", "1980-01-03"), "1d") is None


@pytest.mark.parametrize("anchor", ["open", "clock", "clock_early"])
@pytest.mark.parametrize("label", ["start", "end"])
def test_the_grid_of_hours_is_recognised(anchor, label):
    grid = BarGrid(HOUR, anchor, label)
    stamps = get("XNYS").bars(day("2024-01-02"), day("2024-03-28"), grid)
    found, fit = fit_grid(get("XNYS"), np.delete(stamps, [5, 50]), HOUR)
    # The ends of bars do not tell how the first one would be labelled at its start.
    assert found == (BarGrid(HOUR, "clock", label) if (anchor, label) == ("clock_early", "end") else grid)
    assert fit.rows == 1
    assert fit.sessions > 0.98


def test_a_grid_that_two_anchors_share_is_counted_from_the_open():
    stamps = get("XLON").bars(day("2024-01-02"), day("2024-01-31"), BarGrid(HOUR, "clock"))
    assert fit_grid(get("XLON"), stamps, HOUR)[0] == BarGrid(HOUR)


def test_naive_times_are_read_as_they_lie_in_the_sessions():
    utc = bars("XNYS", "2024-01-02", "2024-06-28", seconds=1800)
    local = utc - np.where(utc < times("2024-03-10T07:00"), 5, 4) * np.timedelta64(1, "h")
    assert zone_of_naive(get("XNYS"), utc, "30m") == "utc"
    assert zone_of_naive(get("XNYS"), local, "30m") == "exchange"
    assert zone_of_naive(get("XNYS"), utc + np.timedelta64(12, "h"), "30m") is None
    assert zone_of_naive(get("24/7"), utc, "30m") == "utc"
    assert zone_of_naive(get("XNYS"), sessions("XNYS"), "1d") is None


def test_an_interval_is_known_by_name():
    assert [name for name, interval in INTERVALS.items() if not interval.is_intraday] == ["1d", "1wk", "1mo"]
    assert parse_interval("15m").seconds == 900
    with pytest.raises(UsageError, match=r"`interval` must be one of 1m, 5m, .*, not '2h'"):
        parse_interval("2h")
