"""``python -m forecast``: its output, its files and its errors."""

import io
import json
import sys
import time

import numpy as np
import pytest
from bodies import GOOD, SHORT
from serving_here import serving

from forecast import Predictor, load_checkpoint, save_checkpoint
from forecast.__main__ import main
from forecast.cli.command import run, spell_options

WINDOW = [100.0 + row for row in range(25)]
TRAIN = ["train", "--source", "snapshot", "--max-epochs", "1", "--hidden-size", "4", "--num-layers", "1"]


def test_train_writes_a_checkpoint_and_prints_persistence_beside_the_model(tmp_path, capsys):
    path = tmp_path / "new" / "model.pt"
    assert run(main, [*TRAIN, "--checkpoint", str(path)]) == 0
    printed = capsys.readouterr().out
    checkpoint = load_checkpoint(path)
    for part in ("validation", "test"):
        assert f"{checkpoint.persistence[part]['MAE']:,.6g}" in printed
    assert f"{checkpoint.metrics_test['RMSE']:,.6g}" in printed
    assert "holes: 1, kept, never filled in" in printed


def test_train_as_json_is_json_alone(tmp_path, capsys):
    assert run(main, [*TRAIN, "--checkpoint", str(tmp_path / "m.pt"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["test"]["model"] == load_checkpoint(tmp_path / "m.pt").metrics_test
    assert answer["data"]["rows"] == 1864


def expected(checkpoint):
    return pytest.approx(Predictor(checkpoint).predict_next(WINDOW), rel=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(map(str, WINDOW)),
        ", ".join(map(str, WINDOW)),
        json.dumps(WINDOW),
        json.dumps({"values": WINDOW, "other": 1}),
    ],
    ids=["lines", "commas", "json list", "request body"],
)
def test_infer_reads_values_from_a_file_or_standard_input_in_any_usual_form(
    tiny_checkpoint, tmp_path, capsys, monkeypatch, text
):
    path = tmp_path / "window.txt"
    path.write_text(text)
    for source in (str(path), "-"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert run(main, ["infer", "--checkpoint", str(tiny_checkpoint), "--file", source, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["prediction"] == expected(tiny_checkpoint)


def test_a_file_whose_symbol_was_not_given_is_said_to_be_of_the_default(tmp_path, capsys):
    path = tmp_path / "acme.csv"
    days = np.arange("2024-01-01", "2024-06-01", dtype="datetime64[D]")
    rows = (f"{day},{100 + number % 7}" for number, day in enumerate(days))
    path.write_text("Date,Close\n" + "\n".join(rows) + "\n")
    command = [
        *TRAIN,
        "--source",
        str(path),
        "--sequence-length",
        "5",
        "--checkpoint",
        str(tmp_path / "a.pt"),
    ]
    notice = "no symbol is given: the prices are taken to be those of BTC-USD; name another with --symbol\n"
    assert run(main, command) == 0
    assert notice in capsys.readouterr().err
    assert run(main, [*command, "--symbol", "ACME"]) == 0
    assert "BTC-USD" not in capsys.readouterr().err


def test_infer_takes_values_from_the_command_line(tiny_checkpoint, capsys):
    values = [str(value) for value in WINDOW]
    assert run(main, ["infer", "--checkpoint", str(tiny_checkpoint), "--json", "--values", *values]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["prediction"] == expected(tiny_checkpoint)
    assert answer["values"] == WINDOW
    assert answer["sequence_length"] == 20


def test_infer_prints_a_price_of_millions_without_an_exponent(tiny_checkpoint, capsys):
    values = [str(2_000_000 + row) for row in range(251)]
    assert run(main, ["infer", "--checkpoint", str(tiny_checkpoint), "--values", *values]) == 0
    printed = capsys.readouterr().out
    assert "persistence (the last value): 2,000,250\n" in printed
    assert "e+" not in printed


def test_infer_warns_of_a_window_shorter_than_the_model_uses(tiny_checkpoint, capsys):
    command = ["infer", "--checkpoint", str(tiny_checkpoint), "--values"]
    assert run(main, [*command, *map(str, SHORT)]) == 0
    assert capsys.readouterr().err == (
        "warning: the window has 20 values, but this model computes its volatility from 251; give 251\n"
    )
    assert run(main, [*command, *map(str, GOOD)]) == 0
    assert capsys.readouterr().err == ""


def test_infer_warns_of_prices_outside_the_training_range_as_the_server_does(tiny_checkpoint, capsys):
    command = ["infer", "--checkpoint", str(tiny_checkpoint), "--values"]
    outside = [*GOOD[1:], 1e6]
    assert run(main, [*command, *map(str, outside)]) == 0
    with serving(tiny_checkpoint) as client:
        (warning,) = client.post("/predict", json={"values": outside}).json()["warnings"]
    assert "outside the training range" in warning
    assert capsys.readouterr().err == f"warning: {warning}\n"


def test_infer_uses_the_latest_window_of_the_models_source_by_default(tiny_checkpoint, snapshot, capsys):
    assert run(main, ["infer", "--checkpoint", str(tiny_checkpoint)]) == 0
    printed, warned = capsys.readouterr()
    prediction = Predictor(tiny_checkpoint).predict_next(snapshot.values[-251:].tolist())
    assert "window: 251 values from " in printed
    assert "warning: the window" not in warned
    assert f"next value after 2020-01-16 is forecast at {prediction:,.6g}" in printed
    assert "persistence (the last value): 8,710.15" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--values", "1", "2"], 1, "2 values are too few: this model needs at least 20"),
        (["--values", "1", "x"], 2, "--values (number 2) x: "),
        (["--values", "1", "nan"], 2, "--values (number 2) nan: "),
        (["--values", "1", "--latest"], 2, "each give the window; use only one of these options"),
        (["--file", "no/such.txt"], 2, "--file no/such.txt cannot be read"),
        (["--latest", "--source", "no/such.csv"], 1, "no file at no/such.csv"),
        (["--checkpoint", "no/such.pt"], 1, "no checkpoint at no/such.pt"),
        (["--checkpoint", "no/such.pt"], 1, "for example --checkpoint model.pt"),
        (["--device", "tpu"], 2, "--device tpu"),
    ],
)
def test_infer_fails_with_one_line_and_the_right_code(tiny_checkpoint, capsys, arguments, code, message):
    assert run(main, ["infer", "--checkpoint", str(tiny_checkpoint), *arguments]) == code
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def infer_json(checkpoint, capsys, *arguments):
    assert run(main, ["infer", "--checkpoint", str(checkpoint), "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_window_file_is_read_by_the_rules_of_price_files(tiny_checkpoint, tmp_path, capsys):
    path, days = tmp_path / "window.txt", [f"2024-01-{day + 1:02}" for day in range(len(WINDOW))]
    table = "\n".join(f"{day},{value}" for day, value in zip(days, WINDOW, strict=True))
    path.write_text(f"Date,Close\n{table}\n")
    answer = infer_json(tiny_checkpoint, capsys, "--file", str(path))
    assert (answer["values"], answer["last_date"]) == (WINDOW, days[-1])
    path.write_text("\n".join(f"{value + 8000:,.2f}" for value in WINDOW))
    answer = infer_json(tiny_checkpoint, capsys, "--file", str(path))
    assert answer["values"] == [round(value + 8000, 2) for value in WINDOW]


def test_a_window_file_with_text_in_it_names_the_value(tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "window.txt").write_text("1.5\nsoon\n2.5\n")
    arguments = ["infer", "--checkpoint", str(tiny_checkpoint), "--file", str(tmp_path / "window.txt")]
    assert run(main, arguments) == 1
    assert "window.txt, value 2, has 'soon', which is not a number" in capsys.readouterr().err


def test_forecasts_are_dated_when_the_last_date_is_known_and_only_then(tiny_checkpoint, capsys):
    values = ["--values", *map(str, WINDOW)]
    assert "forecast_dates" not in infer_json(tiny_checkpoint, capsys, *values)
    answer = infer_json(tiny_checkpoint, capsys, "--last-date", "2024-02-28", "--horizon", "2", *values)
    assert answer["forecast_dates"] == ["2024-02-29", "2024-03-01"]
    assert answer["forecast_closes"] == ["2024-03-01T00:00:00+00:00", "2024-03-02T00:00:00+00:00"]
    latest = infer_json(tiny_checkpoint, capsys, "--horizon", "1")
    assert (latest["last_date"], latest["forecast_dates"]) == ("2020-01-16", ["2020-01-17"])


def test_a_model_that_is_too_old_warns_or_is_refused(tiny_checkpoint, capsys):
    arguments = ["infer", "--checkpoint", str(tiny_checkpoint), "--max-age-sessions", "10"]
    assert run(main, arguments) == 0
    assert "sessions old, more than 10; train on later rows" in capsys.readouterr().err
    assert run(main, [*arguments, "--when-too-old", "refuse"]) == 1


def test_train_refuses_a_place_it_cannot_write_before_it_trains(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run(main, [*TRAIN, "--checkpoint", str(tmp_path / "file" / "model.pt")]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert "rows" not in output.out


def test_debug_shows_the_traceback(tiny_checkpoint):
    from forecast.errors import CheckpointError

    with pytest.raises(CheckpointError):
        run(main, ["infer", "--checkpoint", "no/such.pt", "--debug"])


def test_no_command_is_a_usage_error(capsys):
    assert run(main, []) == 2
    assert "required: {train,infer,backtest,export}" in capsys.readouterr().err


def test_what_nobody_expected_is_one_line_too(capsys):
    def broken(_):
        raise ZeroDivisionError("division by zero\nand more")

    assert run(broken, []) == 1
    assert capsys.readouterr().err == (
        "error: unexpected ZeroDivisionError: division by zero; --debug shows the traceback\n"
    )
    with pytest.raises(ZeroDivisionError):
        run(broken, ["--debug"])


def test_another_python_than_the_environments_is_told_so(capsys):
    def without_torch(_):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    assert run(without_torch, []) == 1
    assert capsys.readouterr().err == (
        f"error: torch is not installed in {sys.executable}; activate the environment of the project "
        "(source .venv/bin/activate), or install the package there\n"
    )


def test_infer_gives_intervals_of_the_levels_and_steps_that_are_asked_for(tiny_checkpoint, capsys):
    command = ["infer", "--checkpoint", str(tiny_checkpoint), "--values", *map(str, WINDOW), "--horizon", "3"]
    assert main([*command, "--levels", "0.5,0.9", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    bounds = Predictor(tiny_checkpoint).predict_intervals([WINDOW], [0.5, 0.9], 3)[0]
    assert answer["predictions"] == pytest.approx(Predictor(tiny_checkpoint).predict_steps([WINDOW], 3)[0])
    assert answer["intervals"][1]["upper"] == pytest.approx(bounds[:, 1, 1])
    assert main([*command, "--levels", "0.9"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("90 % interval") == 3
    assert "step 3" in printed
    assert main(command[:-2]) == 0
    assert capsys.readouterr().out.count("90 % interval") == 1


def test_a_level_beyond_what_the_model_knows_is_an_error_in_one_line(tiny_checkpoint, capsys):
    command = ["infer", "--checkpoint", str(tiny_checkpoint), "--values", *map(str, WINDOW)]
    assert run(main, [*command, "--levels", "0.9999"]) == 1
    assert "level 0.9999 is too high" in capsys.readouterr().err


def test_a_level_that_many_steps_cannot_hold_is_answered_for_one_step_alone(tiny_result, tmp_path, capsys):
    scores, path = np.linspace(-2, 2, 50_000), tmp_path / "model.pt"
    save_checkpoint(tiny_result.checkpoint.model_copy(update={"calibration_scores": scores}), path)
    command = ["infer", "--checkpoint", str(path), "--levels", "0.9999", "--horizon"]
    assert run(main, [*command, "1"]) == 0
    assert "99.99 % interval" in capsys.readouterr().out
    assert run(main, [*command, "2"]) == 1
    assert capsys.readouterr().err == (
        "error: level 0.9999 is too high: this model has intervals up to level 0.995 beyond one step; choose a lower "
        "level\n"
    )


@pytest.mark.parametrize(
    ("message", "spelled"),
    [
        ("`start` 2024-01-01 is not before `end`", "--start 2024-01-01 is not before --end"),
        ("lower `learning_rate` (now 0.1)", "lower --learning-rate (now 0.1)"),
        ("set `log_prices=False`", "set --no-log-prices"),
        ("set `resume=True`", "set --resume"),
        ("use `source=yahoo`, or a file", "use --source yahoo, or a file"),
        ("start one with `ray start --head`", "start one with `ray start --head`"),
    ],
)
def test_the_command_line_spells_the_parameters_of_a_message_as_options(message, spelled):
    assert spell_options(message) == spelled


def test_an_interrupt_that_a_callback_swallows_is_not_lost(capsys):
    class Swallowing:
        def __del__(self):
            raise KeyboardInterrupt

    def main_that_would_go_on(_):
        Swallowing()
        time.sleep(30)

    started = time.monotonic()
    assert run(main_that_would_go_on, []) == 130
    assert time.monotonic() - started < 20
    assert capsys.readouterr().err == "interrupted\n"
