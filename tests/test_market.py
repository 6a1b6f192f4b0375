"""What the whole market did as inputs, symbols held out, and training that starts from a pooled model."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from serving_here import serving
from test_panel import SMALL, closes, write_long

from forecast import Predictor, evaluate, load_checkpoint, load_series, save_checkpoint, train
from forecast.__main__ import main
from forecast.backtest.rolling import backtest
from forecast.backtest.settings import BacktestSettings
from forecast.errors import DataError, UsageError
from forecast.inference.predictor import forecast_together, market_of
from forecast.model.forecaster import Forecaster
from forecast.model.market import CHANNELS, LEAST_SYMBOLS, Market, moves_of
from forecast.model.network import networks
from forecast.model.normalization import Normalization
from forecast.model.panel import held_out, prepare_panel
from forecast.model.start import doubts, member_of, same_options, with_recursions_of
from forecast.model.training import Trainer, forecast_each, forecast_part
from forecast.model.unseen import forecast_unseen
from forecast.model.windows import channels, prepare
from forecast.prices.panel import load_panel
from serve_app.service import TO_SEE_THE_MARKET
from tune_jobs.job import run_job
from tune_jobs.options import TuneOptions
from tune_jobs.space import SPACES

NAMES = tuple("ABCDEFGH")
SEEN = SMALL.model_copy(update={"market": True})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(write_long(closes(symbols=NAMES), tmp_path_factory.mktemp("prices")))


@pytest.fixture(scope="module")
def panel(source):
    return load_panel(("all",), source=source)


@pytest.fixture(scope="module")
def prepared(panel):
    return prepare_panel(panel, SEEN, SEEN.sequence_length)


@pytest.fixture(scope="module")
def pooled(panel):
    return train(panel, SEEN, held_out=("H",))


changes_of_days = st.lists(
    st.lists(st.floats(-4, 4), min_size=LEAST_SYMBOLS, max_size=9), min_size=1, max_size=6
)


@given(changes_of_days)
def test_the_market_of_a_day_is_the_mean_and_the_spread_of_its_changes(days):
    symbols = max(map(len, days))
    changes = [np.array([day[i] for day in days if i < len(day)]) for i in range(symbols)]
    sessions = [np.array([at for at, day in enumerate(days) if i < len(day)]) for i in range(symbols)]
    found = moves_of(changes, sessions, len(days) + 1)
    assert np.isnan(found[-1]).all()
    for day, (mean, spread) in zip(days, found, strict=False):
        bounded = 5 * np.tanh(np.array(day) / 5)
        if bounded.std() > 0.01:
            assert (mean, spread) == pytest.approx((bounded.mean(), bounded.std()), abs=1e-6)


def test_a_day_of_few_symbols_has_no_market():
    changes = [np.array([1.0]) for _ in range(LEAST_SYMBOLS - 1)]
    assert np.isnan(moves_of(changes, [np.array([0])] * len(changes), 1)).all()
    assert Market.fit(np.full((3, 2), np.nan)) is None


def test_what_the_market_did_comes_from_no_later_day_and_its_units_from_no_test_row(panel, prepared):
    end = prepared.borders.train_end
    later = {
        symbol: dataclasses.replace(
            series, matrix=np.where(np.arange(len(series))[:, None] < end, 1, 3) * series.matrix
        )
        for symbol, series in panel.series.items()
    }
    again = prepare_panel(dataclasses.replace(panel, series=later), SEEN, SEEN.sequence_length)
    assert again.market == prepared.market
    for symbol, part in prepared.series.items():
        np.testing.assert_array_equal(again.series[symbol].market[:end], part.market[:end])
        assert np.isfinite(part.market[1:]).all()


def test_the_network_sees_the_market_of_each_row_and_zeros_where_it_is_not_known(prepared):
    part = prepared.series["C"]
    encoding = part.encoding(SEEN)
    assert channels(SEEN) == channels(SMALL) + CHANNELS
    seen, blind = (each.windows("test", encoding).inputs for each in (part, part.without_market()))
    np.testing.assert_array_equal(seen[..., :-CHANNELS], blind[..., :-CHANNELS])
    assert not blind[..., -CHANNELS:].any()
    last = part.market[part.target_rows("test", 20) - 1]
    assert seen[:, -1, -CHANNELS] == pytest.approx(3 * np.tanh(last[:, 0] / 3), abs=1e-5)
    assert seen[:, -1, -2] == pytest.approx(0.3 * last[:, 1], abs=1e-5)
    assert (seen[..., -1] == 1).all()
    # A request's window of the same rows is seen alike.
    alone, _ = encoding.encode(part.histories(encoding.rows, encoding)[part.target_rows("test", 20)])
    np.testing.assert_allclose(alone, seen, atol=1e-6)


def test_a_share_of_the_windows_is_trained_without_the_market(prepared):
    trainer = Trainer(prepared.without_test(), SEEN)
    known = []
    trainer.network.register_forward_pre_hook(
        lambda network, inputs: known.append(inputs[0][:, -1, -1]) if network.training else None
    )
    trainer.advance(1)
    assert 0.65 < float(torch.cat(known).mean()) < 0.85


def test_a_model_that_sees_the_market_is_scored_with_and_without_it(tmp_path, prepared, pooled):
    save_checkpoint(pooled.checkpoint, tmp_path / "model.pt")
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert loaded.market is not None
    assert loaded.metrics_test_without_market is not None
    assert loaded.metrics_test_without_market != loaded.metrics_test
    assert loaded.metrics_test_without_market["CRPS"] == pytest.approx(loaded.metrics_test["CRPS"], rel=0.2)
    assert "H" not in loaded.symbols


def test_the_market_needs_symbols(panel, snapshot):
    few = dataclasses.replace(panel, series={name: panel.series[name] for name in "ABC"})
    for prices in (few, snapshot):
        with pytest.raises(DataError, match="`market` needs sessions in which at least 5 symbols"):
            train(prices, SEEN)


def test_symbols_held_out_are_drawn_by_the_seed_and_change_nothing_that_is_learned(panel, prepared, pooled):
    options = TuneOptions(symbols=("all",), holdout_symbols=0.25)
    assert len(held_out(panel, options, 1)) == 2
    assert held_out(panel, options, 1) == held_out(panel, options, 1)
    assert len({held_out(panel, options, seed) for seed in range(9)}) > 1
    with pytest.raises(UsageError, match=r"`holdout_symbols` 0.01 holds out 0 of 8"):
        held_out(panel, options.model_copy(update={"holdout_symbols": 0.01}), 1)
    without = dataclasses.replace(panel, series={name: panel.series[name] for name in NAMES[:-1]})
    again = train(without, SEEN)
    for name, weights in pooled.checkpoint.model_state.items():
        assert weights.equal(again.checkpoint.model_state[name])
    assert pooled.unseen.keys() == {"H"}


def test_a_symbol_never_seen_is_scored_in_the_units_of_each_window(panel, pooled):
    alone = prepare_panel(panel, SEEN, SEEN.sequence_length, held_out=("H",)).held_out["H"]
    found = forecast_unseen(pooled.checkpoint, alone, "test", "H")
    first = alone.target_rows("test", 20)[0]
    known = panel.series["H"].matrix[max(0, first - pooled.checkpoint.rows_used) : first]
    normalization = Normalization.fit(known, ["Close"], log=True)
    one = Forecaster.of(pooled.checkpoint.of_window(normalization, "H"), networks(pooled.checkpoint))
    rows = one.encoding.with_market(
        normalization.normalize(known)[np.newaxis], alone.market[np.newaxis, first - len(known) : first]
    )
    assert found.points[0] == pytest.approx(one.prices(rows, 1)[0, 0], rel=1e-6)
    assert len(found.points) == len(alone.target_rows("test", 20))


def test_training_that_starts_from_a_pooled_model_is_never_worse_than_it_on_validation_rows(
    tmp_path, panel, source, pooled
):
    path = tmp_path / "pooled.pt"
    save_checkpoint(pooled.checkpoint, path)
    start = load_checkpoint(path)
    series = load_series("H", source=source)
    own = SMALL.model_copy(update={"start_from": path, "learning_rate": 0.5, "max_epochs": 1, "members": 1})
    config = same_options(own, start)
    assert config.market
    prepared = with_recursions_of(start, prepare(series, config))
    trainer = Trainer(prepared, config, member_of(start, config, 0))
    before = trainer.best_loss
    assert trainer.best_epoch == 0
    for name, weights in trainer.best_state().items():
        assert weights.equal(start.model_state[name])
    trainer.advance()  # at this rate it only gets worse
    assert (trainer.best_epoch, trainer.best_loss) == (0, before)
    zero_shot = train(series, config).checkpoint
    assert zero_shot.recursions == start.recursions
    for name, weights in zero_shot.model_state.items():
        assert weights.equal(start.model_state[name])
    # Apart from its units, it is the pooled model of this symbol.
    panel_too = prepare_panel(panel, SEEN, SEEN.sequence_length).without_market()
    own_units = start.model_copy(update={"normalization": panel_too.series["H"].normalization})
    pooled_points = forecast_part(own_units, panel_too.series["H"], "test").points
    found = forecast_part(zero_shot, prepared, "test").points
    assert found[-len(pooled_points) :] == pytest.approx(pooled_points[-len(found) :], rel=1e-3)


def test_another_network_cannot_start_from_a_model(tmp_path, pooled):
    start = pooled.checkpoint
    with pytest.raises(UsageError, match=r"`hidden_size` 64 cannot be used with `start_from`.*has 8"):
        same_options(SMALL.model_copy(update={"hidden_size": 64}), start, {"hidden_size"})
    with pytest.raises(UsageError, match=r"`market` False"):
        member_of(start, SMALL, 0)
    space = SPACES["full"].of(SMALL, start.config)
    assert (space.hidden_size, space.num_layers, space.market) == ((8,), (1, 1), (True,))


def test_a_start_that_has_seen_later_days_or_other_prices_is_told(pooled):
    start = pooled.checkpoint
    own = start.symbols["A"]
    assert doubts(start, SEEN, "1d", [own]) == []
    earlier = own.model_copy(update={"trained_until": "2015-05-01", "validated_until": "2015-06-01"})
    validation, test = doubts(start, SEEN, "1d", [own, earlier])
    assert (
        f"has seen days up to {own.trained_until}, but validation rows begin after 2015-05-01" in validation
    )
    assert f"has seen days up to {own.validated_until}, but test rows begin after 2015-06-01" in test
    (other,) = doubts(start, SEEN, "1h", [own])
    assert "trained on Close of bars of 1d, not on Close of 1h" in other
    unknown = start.model_copy(update={"symbols": {}, "trained_until": None, "validated_until": None})
    assert all("not known which days" in line for line in doubts(unknown, SEEN, "1d", [own]))


def test_symbols_that_the_start_was_trained_on_are_not_held_out(panel, pooled):
    options = TuneOptions(symbols=("all",), holdout_symbols=0.125)
    assert {*held_out(panel, options, 1, pooled.checkpoint.symbols)} == {"H"} == {*pooled.checkpoint.held_out}
    with pytest.raises(UsageError, match="trained on all but 1 of 8"):
        held_out(panel, options.model_copy(update={"holdout_symbols": 0.25}), 1, pooled.checkpoint.symbols)


def test_a_model_is_trained_again_only_from_the_same_start(tmp_path, source, pooled):
    path, own = tmp_path / "pooled.pt", tmp_path / "own.pt"
    save_checkpoint(pooled.checkpoint, path)
    arguments = ["--max-epochs", "1", "--members", "1", "--quiet", "--checkpoint", str(own)]
    assert main(["train", "--source", source, "--symbol", "A", "--start-from", str(path), *arguments]) == 0
    again = ["train", "--from-trial", str(own), "--quiet", "--checkpoint", str(tmp_path / "again.pt")]
    assert main(again) == 0
    first, second = load_checkpoint(own), load_checkpoint(tmp_path / "again.pt")
    assert first.config.sequence_length == 20
    assert first.started_from == second.started_from == load_checkpoint(path).sha256
    for name, weights in first.model_state.items():
        assert weights.equal(second.model_state[name])
    save_checkpoint(pooled.checkpoint.model_copy(update={"created": "another"}), path)
    with pytest.raises(UsageError, match="is no longer the model that this one started from"):
        main(again)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"holdout_symbols": 0.1}, "`holdout_symbols` 0.1 needs `symbols`"),
        (
            {"start_from": "x.pt", "validation_folds": 2},
            "cannot be used with `start_from`, whose model has seen",
        ),
    ],
)
def test_options_that_would_do_nothing_or_look_ahead_are_refused(options, reason):
    with pytest.raises(ValidationError, match=reason):
        TuneOptions(**options)


def test_a_backtest_refuses_what_needs_more_than_the_rows_of_a_fold(snapshot):
    for update, reason in (
        ({"start_from": "x.pt"}, "may have seen the days"),
        ({"market": True}, "one symbol"),
    ):
        with pytest.raises(UsageError, match=reason):
            backtest(snapshot, SMALL.model_copy(update=update), BacktestSettings())


def test_scores_of_one_symbol_are_not_those_of_all(pooled):
    one = pooled.checkpoint.of_symbol("A")
    assert (one.metrics_test_without_market, one.held_out, one.symbols) == (None, (), {})


def test_a_longer_window_of_a_symbol_never_seen_hides_nothing(tmp_path, panel, pooled):
    save_checkpoint(pooled.checkpoint, tmp_path / "model.pt")
    first = Predictor(tmp_path / "model.pt")
    windows = [
        panel.series[symbol].matrix[-length:, 0].tolist()
        for symbol, length in zip(NAMES, [25] * 7 + [60], strict=True)
    ]
    predictors = [first.of_symbol(symbol) for symbol in NAMES[:-1]] + [first.of_window(windows[-1], "H")]
    market = market_of(predictors, windows)
    found = forecast_together(predictors, windows, market)
    known = forecast_together(predictors[:-1], windows[:-1], market_of(predictors[:-1], windows[:-1]))
    assert [each.prices[0] for each in found[:-1]] == pytest.approx(
        [each.prices[0] for each in known], rel=1e-6
    )


def test_the_search_chooses_whether_to_see_the_market():
    space = SPACES["small"].of(TuneOptions(symbols=("all",), market=True))
    assert space.market == (False, True)
    assert SPACES["small"].of(TuneOptions()).market == ()


def test_the_command_trains_with_the_market_and_starts_another_model_from_it(tmp_path, source, capsys):
    pooled, own = tmp_path / "pooled.pt", tmp_path / "own.pt"
    small = ["--sequence-length", "20", "--hidden-size", "8", "--max-epochs", "2", "--members", "1"]
    assert main(["train", "--source", source, "--symbols", "all", "--market", "--holdout-symbols", "0.25", *small,
                 "--checkpoint", str(pooled)]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "Test without the market: MAE " in printed
    assert "Test of 2 of 2 held-out symbols: MAE " in printed
    arguments = ["train", "--source", source, "--symbol", "A", "--start-from", str(pooled), "--json"]
    assert main([*arguments, *small, "--checkpoint", str(own)]) == 0
    assert json.loads(capsys.readouterr().out)["val_loss_best"]
    assert load_checkpoint(own).config.start_from == pooled
    with pytest.raises(UsageError, match="`hidden_size` 16 cannot be used with `start_from`"):
        main([*arguments, "--hidden-size", "16", "--checkpoint", str(own)])


def test_one_symbol_alone_is_scored_without_the_market(prepared, pooled, source):
    blind = prepared.without_market().series["A"]
    own = pooled.checkpoint.of_symbol("A")
    points = forecast_part(own, blind, "test").points
    actual = blind.rows("test", 20).actual
    found = evaluate(pooled.checkpoint, load_series("A", source=source))
    assert found.model["MAE"] == pytest.approx(np.abs(points - actual).mean(), rel=1e-9)
    assert np.abs(points - forecast_part(own, prepared.series["A"], "test").points).max() > 1e-6


def test_windows_that_end_together_are_forecast_with_the_market_that_they_show(tmp_path, panel, prepared):
    pooled = train(panel, SEEN).checkpoint
    save_checkpoint(pooled, tmp_path / "model.pt")
    first = Predictor(tmp_path / "model.pt")
    predictors = [first.of_symbol(symbol) for symbol in NAMES]
    windows = [panel.series[symbol].matrix[:-1, 0].tolist() for symbol in NAMES]
    together = forecast_together(predictors, windows, market_of(predictors, windows))
    for found, points in zip(together, forecast_each(pooled, prepared, "test"), strict=True):
        assert found.prices[0] == pytest.approx(points.points[-1], rel=1e-6)
    blind = forecast_together(predictors, windows)
    for found, points in zip(blind, forecast_each(pooled, prepared.without_market(), "test"), strict=True):
        assert found.prices[0] == pytest.approx(points.points[-1], rel=1e-6)
    assert first.market_doubt(NAMES[:4]).startswith("this forecast does not know what the market did")
    assert first.market_doubt(NAMES[:5]) is None
    assert market_of(predictors[:4], windows[:4]) is None


def test_a_request_for_one_session_of_many_symbols_is_answered_with_the_market(tmp_path, panel, pooled):
    save_checkpoint(pooled.checkpoint, tmp_path / "model.pt")
    first = Predictor(tmp_path / "model.pt")
    known = list(pooled.checkpoint.symbols)
    series = [{"symbol": symbol, "values": panel.series[symbol].matrix[:, 0].tolist()} for symbol in NAMES]
    with serving(str(tmp_path / "model.pt")) as server:
        seen = server.post("/predict/batch", json={"series": series, "same_session": True}).json()
        blind = server.post("/predict/batch", json={"series": series}).json()
        alone = server.post("/predict", json=series[0]).json()
    predictors, windows = (
        [first.of_symbol(symbol) for symbol in known],
        [item["values"] for item in series[:-1]],
    )
    expected = forecast_together(predictors, windows, market_of(predictors, windows))
    assert seen["predictions"][:-1] == pytest.approx([each.prices[0] for each in expected], rel=1e-6)
    assert blind["predictions"][0] == alone["prediction"] != seen["predictions"][0]
    doubt = first.market_doubt(remedy=TO_SEE_THE_MARKET)
    assert doubt in blind["warnings"]
    assert doubt in alone["warnings"]
    assert doubt not in seen["warnings"]


@pytest.mark.slow
def test_a_job_starts_its_trials_from_a_pooled_model(cluster, tmp_path, source, pooled, capsys):
    path = tmp_path / "pooled.pt"
    save_checkpoint(pooled.checkpoint, path)
    options = TuneOptions(
        source=source,
        symbol="H",
        start_from=path,
        space="small",
        num_samples=2,
        report=False,
        output_dir=tmp_path / "job",
    )
    summary = run_job(options).summary
    assert "The pick does not see the market" in capsys.readouterr().out  # one symbol is no market
    for name in ("scored_pick.pt", "best_pareto_lstm.pt"):
        model = load_checkpoint(tmp_path / "job" / name)
        assert (model.config.hidden_size, model.config.market, model.market) == (8, True, None)
        assert model.started_from == load_checkpoint(path).sha256
        assert model.recursions == pooled.checkpoint.recursions
    assert summary["pick"]["problem"] is None
