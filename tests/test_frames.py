"""DataFrames in the long format: what is read, what comes back, and the numbers, which are those of the project."""

import inspect
import pickle

import hourly
import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from serving_here import serving
from sklearn.base import clone
from utilsforecast.evaluation import evaluate
from utilsforecast.losses import coverage, mae, mape, quantile_loss, rmse

from forecast import Forecaster, Predictor, TrainConfig
from forecast.backtest.rolling import backtest
from forecast.backtest.settings import BacktestSettings
from forecast.config import DataConfig
from forecast.errors import DataError, ForecastError, LevelError, UsageError, WindowError
from forecast.frames import DEFAULTS
from forecast.model.export import exported_model
from forecast.prices.frames import Columns, Rows, read_frame
from forecast.scores.distribution import PROBABILITIES

ROWS = 300
SMALL = {"sequence_length": 10, "hidden_size": 4, "max_epochs": 1, "members": 1, "batch_size": 128}
FAST = {**SMALL, "likelihood": "mse", "volatility": "window"}
"""Models whose training needs no fit of a volatility."""
COLUMNS = ["LSTM", "LSTM-lo-90", "LSTM-lo-80", "LSTM-hi-80", "LSTM-hi-90"]


def quiet(line):
    pass


def closes(names=("BETA", "ACME"), rows=ROWS):
    """Series of weekdays at very different levels, the long way."""
    generator = np.random.default_rng(0)
    days = pd.bdate_range("2015-01-05", periods=rows)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "unique_id": name,
                    "ds": days,
                    "y": 10.0**at * np.exp(np.cumsum(0.01 * generator.standard_t(5, rows))),
                }
            )
            for at, name in enumerate(names)
        ],
        ignore_index=True,
    )


def one_series():
    return closes(("ACME",))


@pytest.fixture(scope="module")
def pooled():
    """A model of two series."""
    return Forecaster(**FAST).fit(closes(), notify=quiet)


@pytest.fixture(scope="module")
def saved(pooled, tmp_path_factory):
    """The file of ``pooled``."""
    path = tmp_path_factory.mktemp("frames") / "pooled.pt"
    pooled.save(path)
    return path


def read(df, notify=quiet, columns=None, **options):
    config = DataConfig(**options)
    return read_frame(df, config, columns or Columns(), notify=notify)


# What comes back


def test_forecasts_come_back_in_the_columns_and_the_order_of_the_field(pooled):
    found = pooled.predict(3, level=[80, 90])
    assert list(found.columns) == ["unique_id", "ds", *COLUMNS]
    assert found["unique_id"].tolist() == ["ACME"] * 3 + ["BETA"] * 3
    last = closes()["ds"].max()
    assert found["ds"].tolist() == [*pd.bdate_range(last, periods=4)[1:]] * 2
    assert (np.diff(found[["LSTM-lo-90", "LSTM-lo-80", "LSTM-hi-80", "LSTM-hi-90"]], axis=1) > 0).all()
    assert found.index.equals(pd.RangeIndex(6))


def test_levels_are_percent_or_shares_and_quantiles_are_columns_of_their_own(pooled):
    percent, shares = pooled.predict(2, level=[80, 90]), pooled.predict(2, levels=[0.9, 0.8])
    pd.testing.assert_frame_equal(percent, shares)
    pd.testing.assert_frame_equal(pooled.predict(2, 90), pooled.predict(2, levels=[0.9]))
    found = pooled.predict(2, [90], quantiles=[0.05, 0.5])
    assert list(found.columns[3:]) == ["LSTM-lo-90", "LSTM-hi-90", "LSTM-q-5", "LSTM-q-50"]
    assert found["LSTM-q-5"].tolist() == pytest.approx(found["LSTM-lo-90"].tolist())


def test_polars_gives_the_numbers_of_pandas_and_gets_polars_back(pooled):
    frame = pl.from_pandas(closes())
    own = Forecaster(**FAST).fit(frame, notify=quiet)
    found, expected = own.predict(2, level=[90]), pooled.predict(2, level=[90])
    assert isinstance(found, pl.DataFrame)
    assert found.schema["ds"] == frame.schema["ds"]
    pd.testing.assert_frame_equal(found.to_pandas(), expected, check_dtype=False)
    # Without training again: the same history, given anew in another library.
    again = pooled.predict(2, level=[90], df=frame, notify=quiet)
    assert again.equals(found)


DAYS = pd.bdate_range("2020-01-06", periods=60)


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"ds": DAYS.astype("datetime64[ns]")}),
        pd.DataFrame({"ds": DAYS.astype("datetime64[s]")}),
        pd.DataFrame({"ds": DAYS.tz_localize("America/New_York")}),
        pd.DataFrame({"ds": DAYS.astype(pd.ArrowDtype(pa.timestamp("us")))}),
        pl.DataFrame({"ds": DAYS}).with_columns(pl.col("ds").cast(pl.Date)),
        pl.DataFrame({"ds": DAYS}).with_columns(pl.col("ds").cast(pl.Datetime("ms"))),
        pl.DataFrame({"ds": DAYS}).with_columns(pl.col("ds").dt.replace_time_zone("Asia/Tokyo")),
        pa.table({"ds": pa.array(DAYS.date)}),
    ],
    ids=range(8),
)
def test_dates_come_back_in_the_type_of_the_frame(frame):
    values = np.linspace(100, 110, len(DAYS)) + np.sin(np.arange(len(DAYS)))
    if isinstance(frame, pd.DataFrame):
        frame = frame.assign(unique_id=7, y=values)
    elif isinstance(frame, pl.DataFrame):
        frame = frame.with_columns(unique_id=pl.lit(7), y=pl.Series(values))
    else:
        frame = frame.append_column("unique_id", pa.array([7] * len(DAYS)))
        frame = frame.append_column("y", pa.array(values))
    long = read(frame)
    (series,) = long.panel.series.values()
    found = long.form.frame([Rows(series.symbol, series.next_dates(2), {"LSTM": np.ones(2)})])
    assert type(found) is type(frame)
    for column in ("unique_id", "ds"):
        kinds = [getattr(each[column], "dtype", None) or each[column].type for each in (found, frame)]
        assert kinds[0] == kinds[1]
    days = nw.from_native(found, eager_only=True)["ds"].to_list()
    assert [str(day)[:10] for day in days] == ["2020-03-30", "2020-03-31"]


@pytest.mark.parametrize("zone", ["America/New_York", "UTC", None, "naive UTC"])
def test_hours_stay_hours_on_the_clock_of_the_frame(zone):
    bars = hourly.stock("2024-06-03", "2024-08-30")
    clock = {None: "America/New_York", "naive UTC": "UTC"}.get(zone, zone)
    stamps = pd.DatetimeIndex(bars["Datetime"]).tz_convert(clock)
    stamps = stamps if zone == clock else stamps.tz_localize(None)
    long = read(pd.DataFrame({"unique_id": "ACME", "ds": stamps, "y": bars["Close"]}))
    (series,) = long.panel.series.values()
    assert len(series) == len(bars)
    again = long.form.frame([Rows("ACME", series.dates, {"y": series.values})])
    assert again["ds"].tolist() == stamps.tolist()
    following = long.form.frame([Rows("ACME", series.next_dates(2), {"y": np.ones(2)})])
    expected = pd.to_datetime(["2024-09-03 09:30", "2024-09-03 10:30"]).tz_localize("America/New_York")
    expected = expected.tz_convert(clock)
    assert following["ds"].tolist() == list(expected if zone == clock else expected.tz_localize(None))


def test_months_are_labelled_as_the_frame_labels_them():
    months = pd.date_range("2010-01-31", periods=96, freq="ME")
    frame = pd.DataFrame({"unique_id": "A", "ds": months, "y": 100 + np.sin(np.arange(96))})
    (series,) = read(frame).panel.series.values()
    assert series.next_dates(2).astype(str).tolist() == ["2018-01-31", "2018-02-28"]


# What is read


def test_repairs_are_said_and_change_the_forecast_no_more_than_the_rules_do(pooled):
    clean = closes()
    expected = pooled.predict(1, df=clean, notify=quiet)
    extra = clean.iloc[[50, 360]].assign(y=lambda rows: rows["y"] * 1.01)
    empty = clean.iloc[[-1]].assign(ds=lambda rows: rows["ds"] + pd.Timedelta(days=3), y=np.nan)
    nameless = clean.iloc[:3].assign(unique_id=None)
    rough = pd.concat([extra, empty, nameless, clean.iloc[::-1]])
    said = []
    found = pooled.predict(1, df=rough, notify=said.append)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    text = "\n".join(said)
    assert "duplicate dates: 2, rows dropped, the last kept" in text
    assert "non finite: 1, rows dropped" in text
    assert "unsorted" in text
    assert "3 rows without a unique_id; they are left out" in text


def test_a_series_that_cannot_be_used_costs_only_itself_and_says_why():
    rows = closes(("ACME", "BETA", "FLAT"))
    rows.loc[rows["unique_id"] == "FLAT", "y"] = 5.0
    short = rows[rows["unique_id"] == "BETA"].head(12).assign(unique_id="SHORT")
    said = []
    model = Forecaster(**FAST).fit(pd.concat([rows, short]), notify=said.append)
    assert set(model.left_out_) == {"FLAT", "SHORT"}
    assert any("left out: " in line and "FLAT" in line and "SHORT" in line for line in said)
    assert model.predict()["unique_id"].tolist() == ["ACME", "BETA"]


def test_names_of_columns_and_types_of_names_are_the_frames_own(pooled):
    named = closes().rename(columns={"unique_id": "ticker", "ds": "day", "y": "Close"})
    named["ticker"] = pd.Categorical(named["ticker"])
    predictor = Predictor.of(pooled.checkpoint_)
    found = predictor.predict_frame(
        named, 2, id_col="ticker", time_col="day", target_col="Close", notify=quiet
    )
    assert list(found.columns) == ["ticker", "day", "LSTM"]
    assert found["ticker"].dtype == named["ticker"].dtype
    expected = pooled.predict(2)["LSTM"]
    assert found["LSTM"].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda df: df["y"].tolist(), "`df` cannot be used, .* list; give a pandas or polars DataFrame"),
        (lambda df: df["y"], "`df` cannot be used, .* Series; give a pandas or polars DataFrame"),
        (lambda df: pl.from_pandas(df).lazy(), r"`df` cannot be used, .* LazyFrame .*`\.collect\(\)`"),
        (lambda df: pd.concat([df, df["y"]], axis=1), "`df` has several columns called 'y'"),
        (lambda df: pa.table([[1.0], [2.0]], names=["y", "y"]), "`df` has several columns called 'y'"),
        (lambda df: df.assign(ds=df["ds"].dt.to_period("D")), r"`time_col` ds .*\.dt\.to_timestamp"),
        (lambda df: df.assign(y=df["y"] + 0j), "no real numbers in its column y"),
        (lambda df: df.assign(ds=df["ds"] + pd.Timedelta(days=36500)), "ACME: .*dates are in the future"),
        (lambda df: df.drop(columns="ds"), "has no column 'ds'; choose one of: unique_id, y, with `time_col`"),
        (lambda df: df.drop(columns="unique_id"), "no column 'unique_id'.*`id_col`"),
        (lambda df: df.head(0), "has no rows"),
        (lambda df: df.assign(ds=np.arange(len(df))), "`time_col` ds has numbers .*calendar"),
        (lambda df: df.assign(ds=df["ds"].where(df.index != 5)), "row 6, has no date"),
        (lambda df: df.assign(ds="soon"), "column ds, row 1.*`time_col`"),
        (lambda df: df.assign(y="much"), "column y, row 1.*`target_col`"),
        (lambda df: df.assign(unique_id=None), "has no names of series"),
        (lambda df: df.assign(unique_id=[1, "1"] * (len(df) // 2)), "'1' as different values"),
        (lambda df: df.assign(y=-1.0), "none of them good.*; choose another `target_col`$"),
        (lambda df: df.assign(ds=df["ds"][0]), "several rows with different prices .*`id_col`"),
    ],
)  # fmt: skip
def test_a_frame_that_cannot_be_read_is_refused_in_one_line(change, message):
    with pytest.raises(ForecastError, match=message) as refused:
        read(change(one_series()))
    assert "\n" not in str(refused.value)


def test_rows_in_the_future_are_left_out_with_their_number_and_the_rest_is_used():
    today = pd.Timestamp.now("UTC").tz_localize(None).normalize()
    frame = one_series().assign(ds=pd.date_range(end=today + pd.Timedelta(days=50), periods=ROWS))
    ahead = frame.assign(unique_id="AHEAD", ds=frame["ds"] + pd.Timedelta(days=ROWS))
    said = []
    long = read(pd.concat([frame, ahead]), said.append)
    count = ROWS + 49
    assert any(f"{count} rows with a date in the future (the first is {today + pd.Timedelta(days=2):%F})" in line
               for line in said)  # fmt: skip
    assert "in the future" in long.panel.left_out["AHEAD"]
    assert long.panel.series["ACME"].dates[-1] == np.datetime64(today - pd.Timedelta(days=1), "D")


# Parameters


def test_it_is_cloned_and_changed_as_estimators_of_scikit_learn_are(pooled):
    model = Forecaster(max_epochs=3, input_columns=("High", "Low"), alias="net")
    copy = clone(model)
    assert copy.get_params() == model.get_params() == {**DEFAULTS, "alias": "net", "max_epochs": 3,
                                                        "input_columns": ("High", "Low")}  # fmt: skip
    assert copy.set_params(max_epochs=4) is copy
    assert (copy.max_epochs, model.max_epochs) == (4, 3)
    assert repr(model) == "Forecaster(alias='net', input_columns=('High', 'Low'), max_epochs=3)"
    assert not hasattr(clone(pooled), "checkpoint_")
    assert set(inspect.signature(Forecaster).parameters) == set(model.get_params())


def test_every_option_of_a_training_is_a_parameter_or_is_refused_with_the_reason():
    for name in TrainConfig.model_fields.keys() - DEFAULTS.keys():
        with pytest.raises(UsageError, match=rf"`{name}`: .*omit it"):
            Forecaster(**{name: "x"})


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: Forecaster(hiden_size=3), "`hiden_size`: no such parameter; did you mean hidden_size"),
        (lambda: Forecaster(zzz=3), "`zzz`: no such parameter; the names are"),
        (lambda: Forecaster(freq="D"), "`freq`: .*`calendar`$"),
        (lambda: Forecaster(notify=print), "`notify`: .*`fit`"),
        (lambda: Forecaster().fit(one_series(), notify="x"), "`notify` 'x': give a function"),
        (lambda: Forecaster(alias="").cross_validation(one_series()), "`alias` ''"),
        (lambda: Forecaster(alias="y").cross_validation(one_series()), "`alias` y: y .* `target_col`"),
        (lambda: Forecaster(alias="ds").cross_validation(one_series()), "`alias` ds: ds .* `time_col`"),
        (lambda: Forecaster(alias="cutoff").cross_validation(one_series()), "`alias` cutoff: .* cutoffs"),
        (lambda: Forecaster(hidden_size=0).fit(one_series()), "`hidden_size` 0: "),
        (lambda: Forecaster(network="none").fit(one_series()), "`network` none"),
        (lambda: Forecaster().predict(), "not fitted; call `fit` first"),
        (lambda: Forecaster().save("x.pt"), "not fitted"),
        (lambda: Forecaster(**FAST).fit(one_series().head(60), notify=quiet), "ACME: .* validation rows"),
        (lambda: Forecaster(**FAST).cross_validation(one_series(), 100, 5, 3), "100 windows of 5 steps"),
        (lambda: Forecaster(**FAST).cross_validation(one_series(), 0), "`n_windows` 0"),
        (lambda: Forecaster(**FAST).cross_validation(one_series(), refit=-1), "`refit` -1: .* True or False"),
        (lambda: Forecaster(start_from="x.pt").cross_validation(one_series()), "`start_from`"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(use, message):
    with pytest.raises((UsageError, DataError), match=message):
        use()


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ({"level": [0.9]}, UsageError, "`level` 0.9: levels are percent"),
        ({"levels": [90]}, UsageError, "`levels` 90: levels are shares"),
        ({"level": [90], "levels": [0.9]}, UsageError, "omit one of the two"),
        ({"quantiles": [1.0]}, UsageError, "`quantiles` 1"),
        ({"h": 0}, UsageError, "`h` 0"),
        ({"h": 1.5}, UsageError, "`h` 1.5"),
        ({"level": [99.9]}, LevelError, r"level 0\.999 is too high"),
        ({"level": ["x"]}, UsageError, r"`level` \['x'\]: give a list of numbers"),
        ({"level": one_series()}, UsageError, "`level` is a DataFrame; .*`df`"),
        ({"h": one_series()}, UsageError, "`h` is a DataFrame; .*`df`"),
        ({"notify": "x"}, UsageError, "`notify` 'x'"),
    ],
)
def test_a_forecast_that_cannot_be_made_is_refused_in_one_line(pooled, asked, kind, message):
    with pytest.raises(kind, match=message):
        pooled.predict(**asked)


# The model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.onnx", "writes a checkpoint.*`forecaster export`"),
        (".", "is a directory; give the path of a file"),
        ("file/model.pt", "cannot be written"),
    ],
)
def test_a_model_is_not_saved_where_it_cannot_be_and_nothing_is_left_there(pooled, tmp_path, name, message):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=message):
        pooled.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_saved_model_forecasts_the_same_in_python_and_behind_the_server(pooled, saved):
    expected = pooled.predict(2, level=[90])
    loaded = Forecaster.load(saved)
    pd.testing.assert_frame_equal(loaded.predict(2, level=[90], notify=quiet), expected)
    assert loaded.get_params() == pooled.get_params()
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(pooled)).predict(2, level=[90]), expected)
    values = closes().query("unique_id == 'BETA'")["y"].tolist()
    with serving(saved) as client:
        body = {"symbol": "BETA", "values": values, "horizon": 2}
        answer = client.post("/predict", json=body).json()
    assert answer["predictions"] == pytest.approx(expected["LSTM"].tolist()[2:])


def test_an_exported_model_forecasts_a_frame_as_the_checkpoint_does(pooled, tmp_path):
    path = tmp_path / "pooled.onnx"
    path.write_bytes(exported_model(pooled.checkpoint_).SerializeToString())
    found = Predictor(path).predict_frame(closes(), 2, [90], notify=quiet)
    pd.testing.assert_frame_equal(found, pooled.predict(2, [90]), rtol=1e-6)


def test_a_checkpoint_of_any_origin_forecasts_from_its_own_window_or_from_a_frame(tiny_checkpoint, snapshot):
    loaded = Forecaster.load(tiny_checkpoint)
    found = loaded.predict(2, notify=quiet)
    assert found["unique_id"].tolist() == ["BTC-USD"] * 2
    assert found["ds"].dt.strftime("%F").tolist() == ["2020-01-17", "2020-01-18"]
    frame = pd.DataFrame({"unique_id": "BTC-USD", "ds": snapshot.dates, "y": snapshot.values})
    given = loaded.predict(2, df=frame, notify=quiet)
    assert given["LSTM"].tolist() == pytest.approx(found["LSTM"].tolist())
    with pytest.raises(UsageError, match="no symbol 'OTHER'"):
        loaded.predict(2, df=frame.assign(unique_id="OTHER"), notify=quiet)


def test_a_model_of_many_series_forecasts_one_that_it_has_never_seen_as_of_window_does(pooled):
    frame, said = closes(("NEW",)), []
    found = pooled.predict(2, level=[90], df=frame, notify=said.append)
    values = frame["y"].tolist()
    unseen = Predictor.of(pooled.checkpoint_).of_window(values[-pooled.checkpoint_.rows_used :], "NEW")
    assert found["LSTM"].tolist() == unseen.predict_steps([values], 2)[0].tolist()
    assert any("the model was not trained on NEW" in line for line in said)


def test_covariates_are_columns_of_the_frame_and_forecast_one_step():
    frame = one_series().assign(Volume=lambda rows: 1000 + 10 * np.abs(np.sin(rows.index)), note="x")
    model = Forecaster(input_columns=["volume"], **FAST).fit(frame, notify=quiet)
    assert len(model.predict()) == 1
    with pytest.raises(WindowError, match="would need forecasts of volume"):
        model.predict(2)
    with pytest.raises(DataError, match=r"no column 'Turnover'.*`input_columns`"):
        Forecaster(input_columns=["Turnover"]).fit(frame)


# Cross-validation


@pytest.fixture(scope="module")
def scored():
    """A cross-validation of one step from 40 rows on, and the project's own backtest of the same rows."""
    frame = one_series()
    asked = {"level": [50, 80, 90, 95], "quantiles": PROBABILITIES.tolist()}
    found = Forecaster(**SMALL).cross_validation(frame, 40, 1, 1, refit=20, notify=quiet, **asked)
    (series,) = read(frame).panel.series.values()
    settings = BacktestSettings(folds=2, fold_rows=20, seeds=1, horizons=(1,), baselines=())
    return found, backtest(series, TrainConfig(source="x", **SMALL), settings)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_utilsforecast_finds_the_scores_of_the_projects_own_backtest(scored, library):
    found, own = scored
    frame = found.drop(columns="cutoff")
    frame = pl.from_pandas(frame) if library == "polars" else frame

    def score(metric, **more):
        table = evaluate(frame, [metric], models=["LSTM"], agg_fn="mean", **more)
        return float(table["LSTM"][0])

    mean, (evaluation,) = own.scores().mean, own.scores().evaluations
    assert score(mae) == pytest.approx(mean["MAE"], rel=1e-6)
    assert score(rmse) == pytest.approx(mean["RMSE"], rel=1e-6)
    assert 100 * score(mape) == pytest.approx(mean["MAPE"], rel=1e-6)
    for interval in evaluation.intervals:
        covered = coverage(frame, ["LSTM"], level=round(100 * interval.level))
        assert float(covered["LSTM"][0]) == pytest.approx(interval.coverage)
    losses = [
        float(quantile_loss(frame, {"LSTM": f"LSTM-q-{100 * share:.10g}"}, q=share)["LSTM"][0])
        for share in PROBABILITIES
    ]
    # The project gives each quantile the probabilities that are nearest to it, which are more at the ends.
    shares = np.diff([0, *((PROBABILITIES[1:] + PROBABILITIES[:-1]) / 2), 1])
    assert 2 * float(shares @ losses) == pytest.approx(mean["CRPS"], rel=1e-6)


def test_the_rows_of_a_cross_validation_are_those_of_the_field(scored):
    found, own = scored
    assert list(found.columns[:5]) == ["unique_id", "ds", "cutoff", "y", "LSTM"]
    frame = one_series()
    assert found["ds"].tolist() == frame["ds"].tolist()[-40:]
    assert found["cutoff"].tolist() == frame["ds"].tolist()[-41:-1]
    assert found["y"].tolist() == frame["y"].tolist()[-40:]
    assert (found.dtypes[["ds", "cutoff", "y"]] == frame.dtypes[["ds", "ds", "y"]].to_numpy()).all()
    assert found["LSTM"].to_numpy() == pytest.approx(own.model(0).points, rel=1e-6)


def test_each_window_is_forecast_by_the_model_of_the_rows_before_it():
    frame = closes()
    found = Forecaster(**FAST).cross_validation(
        pl.from_pandas(frame), n_windows=2, h=3, step_size=2, level=[90], notify=quiet
    )
    days = sorted(set(frame["ds"]))
    assert found["cutoff"].unique().sort().to_list() == [days[-6], days[-4]]
    own = found.filter(pl.col("cutoff") == days[-4])
    past = frame[frame["ds"] <= days[-4]]
    expected = Forecaster(**FAST).fit(past, notify=quiet).predict(3, level=[90])
    assert own.drop("cutoff", "y").to_pandas()["ds"].tolist() == expected["ds"].tolist()
    for column in ("LSTM", "LSTM-lo-90", "LSTM-hi-90"):
        assert own[column].to_list() == expected[column].tolist()


def test_a_later_day_of_one_series_is_not_known_to_the_model_of_another():
    """The series end on different days, and the cutoffs are days of all of them."""
    frame = closes()
    days = sorted(set(frame["ds"]))
    ends_early = frame[(frame["unique_id"] == "ACME") | (frame["ds"] <= days[-3])]
    found = Forecaster(**FAST).cross_validation(ends_early, 2, 2, 2, refit=False, notify=quiet)
    rows = {
        (name, cutoff): group["ds"].tolist()
        for (name, cutoff), group in found.groupby(["unique_id", "cutoff"])
    }
    assert rows == {
        ("ACME", days[-5]): [days[-4], days[-3]],
        ("BETA", days[-5]): [days[-4], days[-3]],
        ("ACME", days[-3]): [days[-2], days[-1]],
    }
