"""``forecaster``, and where options come from: the command line, a file, the environment."""

import importlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import catches

from forecast.__main__ import main as forecast_main
from forecast.cli import completion, console, forms
from forecast.cli.command import SETTINGS, run
from forecast.cli.config_file import config_text, read_config
from forecast.config import DataConfig, from_environment, options_of, parse_settings
from forecast.errors import CheckpointError
from tune_jobs import models, pareto, update
from tune_jobs.options import TuneOptions

FORECASTER = str(Path(sys.executable).with_name(forms.PROGRAM))


def tune_options(*arguments):
    return parse_settings(TuneOptions, vars(pareto.build_parser().parse_args(arguments)))


@pytest.fixture(scope="module")
def parsers():
    """The parsers of all commands that have options, by their names."""
    found = {}

    def collect(parser):
        if SETTINGS in parser._defaults:
            found[parser.prog] = parser
        for action in parser._actions:
            if completion._has_subcommands(action):
                for each in action.choices.values():
                    collect(each)

    collect(completion.whole_parser())
    return found


def test_help_lists_every_command_and_imports_nothing_that_takes_time():
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "sys.argv = ['forecaster', '--help']\n"
        "from forecast.cli.console import main\n"
        "assert main() == 0\n"
        "heavy = {'argparse', 'pydantic', 'yaml', 'numpy', 'torch', 'ray', 'optuna', 'fastapi', 'shtab'}\n"
        "print(heavy & (set(sys.modules) - before), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"
    assert all(f"\n  {name} " in done.stdout for name in forms.COMMANDS)


@pytest.mark.parametrize("name", forms.COMMANDS)
def test_a_command_runs_its_module_with_its_fixed_arguments(name, monkeypatch):
    seen = {}
    monkeypatch.setattr(forms, "_short", False)
    monkeypatch.setattr("runpy.run_module", lambda module, **_: seen.update(module=module, argv=sys.argv[1:]))
    monkeypatch.setattr(console, "end_at_once", lambda: None)
    monkeypatch.setattr(sys, "argv", ["forecaster", name, "--seed", "7"])
    console.main()
    command = forms.COMMANDS[name]
    assert seen == {"module": command.module, "argv": [*command.fixed, "--seed", "7"]}
    for other in command.instead:
        monkeypatch.setattr(sys, "argv", ["forecaster", name, other])
        console.main()
        assert seen["argv"] == [other]


def test_help_errors_and_examples_name_the_form_that_the_user_typed(monkeypatch, capsys):
    assert run(pareto.main, ["--nonsense"]) == 2
    assert "see python -m tune_jobs.pareto --help" in capsys.readouterr().err
    monkeypatch.setattr(forms, "_short", True)
    assert run(pareto.main, ["--nonsense"]) == 2
    assert "see forecaster tune --help" in capsys.readouterr().err

    def without_a_model(_):
        raise CheckpointError(
            "make one with `python -m tune_jobs.pareto`; see `python -m serve_app reload --help`"
        )

    assert run(without_a_model, []) == 1
    assert "make one with `forecaster tune`; see `forecaster serve reload --help`" in capsys.readouterr().err
    for name, command in forms.COMMANDS.items():
        parser = completion._subcommand(importlib.import_module(command.module).build_parser(), command.fixed)
        text = parser.format_help()
        assert text.startswith(f"usage: forecaster {name} ")
        assert "python -m" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tun"], 2, "error: unknown command tun; did you mean tune? see forecaster --help\n"),
        (
            ["serve", "relod"],
            2,
            "error: unexpected argument relod; did you mean reload? see forecaster serve --help\n",
        ),
        (
            ["tune", "--num-sample", "4"],
            2,
            "error: unrecognized option --num-sample 4; did you mean --num-samples? see forecaster tune --help\n",
        ),
    ],
)
def test_a_mistake_is_one_line_in_the_words_of_forecaster(arguments, code, message):
    done = subprocess.run([FORECASTER, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert done.stderr.endswith(message)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (pareto.main, ["--space", "smal"], "--space smal: choose from full, small; did you mean small?"),
        (pareto.main, ["--space", "x"], "--space x: choose from full, small"),
        (pareto.main, ["--num-samples=many"], "--num-samples many: give a whole number"),
        (pareto.main, ["--num-samples", "2.5"], "--num-samples 2.5: give a whole number"),
        (pareto.main, ["--train-ratio", "nan"], "--train-ratio nan: give a finite number"),
        (pareto.main, ["--train-ratio", "x"], "--train-ratio x: give a number"),
        (pareto.main, ["--end", "yesterday"], "--end yesterday: give a date such as 2024-01-31"),
        (pareto.main, ["--objectives"], "--objectives: give at least 1"),
        (pareto.main, ["--symbol="], "--symbol: give a text that is not empty"),
        (pareto.main, ["--seed", str(2**32)], "--seed 4294967296: give a number less than 4294967296"),
        (
            pareto.main,
            ["--delimiter", "ab"],
            "--delimiter ab: expected: sign between the fields of a text file; tab for a tab",
        ),
        (pareto.main, ["4"], "unexpected argument 4; see python -m tune_jobs.pareto --help"),
        (update.main, ["--horizons", "abc"], "--horizons (number 1) abc: give a whole number"),
        (
            update.main,
            ["--notify", "localhost"],
            "--notify localhost: expected: address (https:// or http://) to which each new alarm is posted as JSON",
        ),
        (
            models.main,
            ["lst"],
            "unknown command lst; did you mean list? see python -m tune_jobs.models --help",
        ),
    ],
)
def test_a_wrong_value_is_one_plain_line_with_the_remedy(main, arguments, message, capsys):
    assert run(main, arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_the_command_line_wins_over_the_file_and_the_file_over_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "job.yaml"
    path.write_text(
        "num-samples: 5\nmembers: 3\nsymbols: [ON, NO]\nlog_prices: false\nweights:\nstart: 2020-01-02\n"
    )
    monkeypatch.setenv("FORECAST_NUM_SAMPLES", "6")
    monkeypatch.setenv("FORECAST_SEED", "7")
    monkeypatch.setenv("FORECAST_OBJECTIVES", "mae, crps")
    monkeypatch.setenv("FORECAST_STRATEGY", "min_mae")
    monkeypatch.setenv("FORECAST_RETRAIN", "no")
    monkeypatch.setenv("FORECAST_FEATURE", "")
    monkeypatch.setenv("FORECAST_JSON", "true")
    options = tune_options("--config", str(path), "--members", "1")
    assert (options.num_samples, options.members, options.seed) == (5, 1, 7)
    # As text, ON and NO are symbols and no booleans.
    assert options.symbols == ("ON", "NO")
    assert (options.log_prices, options.weights, str(options.start)) == (False, None, "2020-01-02")
    assert (options.objectives, options.retrain, options.json_output) == (("mae", "crps"), False, True)
    assert options.feature == "Close"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 1\n\nspase: full\n",
            "{path}, line 3: spase is not an option of this command; did you mean space?",
        ),
        ("zzz: 1\n", "{path}, line 1: zzz is not an option of this command; --help lists the options"),
        ("space: smal\n", "space ({path}, line 1) smal: choose from full, small; did you mean small?"),
        ("num-samples: [4, 5]\n", "num-samples ({path}, line 1) 4,5: give a whole number"),
        ("seed: {a: 1}\n", "{path}, line 1: seed has a nested value; give one value or a list"),
        ("symbols: [a, [b]]\n", "{path}, line 1: symbols has a nested value; give one value or a list"),
        ("seed: 1\nseed: 2\n", "{path}, line 2: seed is given twice; omit one of the two"),
        ("? |\n  two\n  lines\n: 1\n", "{path}, line 1: two lines is not an option of this command; --help"),
        ("just text\n", "--config {path}: give one option per line, for example `seed: 7`"),
        (
            "seed: [1\n",
            "--config {path}, line 2: not YAML (expected ',' or ']', but got '<stream end>'); correct",
        ),
        ("\x00", "--config {path}: not YAML (special characters are not allowed); correct the file"),
        # The file is to blame for one half of this, the command line for the other.
        ("weights: [1, 2, 3]\n", "weights ({path}, line 1) (1.0, 2.0, 3.0) needs --strategy weighted"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_the_file(text, message, tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert run(pareto.main, ["--config", str(path)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message.format(path=path)}")
    assert printed.count("\n") == 1


def test_a_file_that_is_missing_is_one_line(tmp_path, capsys):
    assert run(pareto.main, ["--config", "no/such.yaml"]) == 2
    assert capsys.readouterr().err == (
        "error: --config no/such.yaml cannot be read (no such file or directory); check the path\n"
    )


def test_an_empty_path_as_of_a_variable_of_the_shell_that_is_not_set_is_refused(capsys):
    assert run(pareto.main, ["--config", "", "--print-config"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_variable_that_contradicts_the_command_line_is_named(monkeypatch, capsys):
    monkeypatch.setenv("FORECAST_SOURCE", "snapshot")
    assert run(forecast_main, ["infer", "--values", "1"]) == 2
    assert "--latest and FORECAST_SOURCE each give the window" in capsys.readouterr().err


def test_a_wrong_value_of_a_variable_names_the_variable_until_the_command_line_overrides_it(
    monkeypatch, capsys
):
    monkeypatch.setenv("FORECAST_NUM_SAMPLES", "few")
    assert run(pareto.main, []) == 2
    assert capsys.readouterr().err == "error: FORECAST_NUM_SAMPLES few: give a whole number\n"
    assert run(pareto.main, ["--num-samples", "less"]) == 2
    assert capsys.readouterr().err == "error: --num-samples less: give a whole number\n"


def test_print_config_writes_what_config_reads_and_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORECAST_SYMBOL", "ON")
    monkeypatch.setenv("FORECAST_API_KEY", "secret")
    arguments = ["--print-config", "--num-samples", "4", "--space", "full", "--input-columns", "High,Low"]
    with pytest.raises(SystemExit) as ended:
        run(pareto.main, arguments)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    # What has its default is a comment, unless it was given.
    assert yaml.safe_load(text) == {
        "symbol": "ON",
        "input_columns": ["High", "Low"],
        "num_samples": 4,
        "space": "full",
    }
    assert "\n# seed: 42\n" in text
    assert "secret" not in text
    (tmp_path / "job.yaml").write_text(text)
    monkeypatch.delenv("FORECAST_SYMBOL")
    assert tune_options("--config", "job.yaml") == tune_options("--symbol", "ON", *arguments[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_print_config_writes_an_address_with_a_password_as_a_comment_with_the_remedy(capsys):
    with pytest.raises(SystemExit):
        run(pareto.main, ["--print-config", "--study-storage", "postgresql://us:hunter2@db/s"])
    text = capsys.readouterr().out
    assert yaml.safe_load(text) is None
    (line,) = (line for line in text.splitlines() if "study_storage" in line)
    assert line.startswith("# study_storage: postgresql://us:***@db/s  # its password is not written; name")


def test_a_path_in_a_file_or_a_variable_may_begin_with_the_home_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/us")
    monkeypatch.setenv("FORECAST_WARM_START", "~/earlier")
    Path("job.yaml").write_text("output_dir: ~/jobs\n")
    options = tune_options("--config", "job.yaml")
    assert (options.output_dir, options.warm_start) == (Path("/home/us/jobs"), Path("/home/us/earlier"))
    assert run(pareto.main, ["--config", "~nobody-here/job.yaml"]) == 2
    assert "--config ~nobody-here/job.yaml cannot be read (no such file" in capsys.readouterr().err


def test_print_config_refuses_what_the_command_would_refuse(capsys):
    assert run(pareto.main, ["--print-config", "--num-samples", "0"]) == 2
    assert capsys.readouterr().out == ""


TEXT = st.text(min_size=1, max_size=20)


@settings(max_examples=40)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "symbol": TEXT,
            "feature": TEXT,
            "input_columns": st.lists(TEXT.filter(lambda text: "," not in text and text.strip()), max_size=3),
            "train_ratio": st.floats(0.001, 0.999),
            "log_prices": st.booleans(),
            "delimiter": st.sampled_from([",", "\t", " ", "#", ":", "'"]),
            "start": st.dates(),
        },
    )
)
def test_a_written_file_reads_as_the_same_options(tmp_path_factory, written):
    try:
        options = parse_settings(DataConfig, written)
    except Exception:  # columns that are named twice
        return
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(config_text("a command", options, written.keys()), encoding="utf-8", newline="")
    read = {name: value for name, (value, _) in read_config(path, DataConfig).items()}
    assert parse_settings(DataConfig, read) == options
    assert read.keys() == written.keys()


@pytest.mark.parametrize("text", ["\xa0", "\x85"])
def test_a_value_of_unusual_white_space_survives_a_written_file(tmp_path, text):
    options, path = parse_settings(DataConfig, {"symbol": text}), tmp_path / "written.yaml"
    path.write_text(config_text("a command", options, {"symbol"}), encoding="utf-8", newline="")
    assert read_config(path, DataConfig)["symbol"][0] == text


def test_every_option_of_every_command_has_a_variable_and_no_secret_is_an_option(parsers, monkeypatch):
    of_the_call = {"help", "version", "debug", "config", "print_config"}
    assert len(parsers) > 12
    for parser in parsers.values():
        names = options_of(parser._defaults[SETTINGS][1]).keys()
        assert {action.dest for action in parser._actions if action.option_strings} == names | of_the_call
        # FORECAST_API_KEY and FORECAST_CACHE_DIR have meanings of their own.
        assert not {"api_key", "cache_dir"} & names
        for name in names:
            monkeypatch.setenv(f"FORECAST_{name.upper()}", "given")
        assert from_environment(parser._defaults[SETTINGS][1]).keys() == names


SCRIPT_OF_BASH = """\
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
$(complete -p forecaster | sed -E 's/.*-F (\\S+).*/\\1/')
echo "${{COMPREPLY[@]}}"
"""
COMPLETIONS = [
    ("tune --num-", ["--num-samples"]),
    ("tune --space s", ["small"]),
    ("mod", ["models"]),
    ("models prom", ["promote"]),
    ("serve --por", ["--port"]),
    ("serve relo", ["reload"]),
    ("serve reload --time", ["--timeout"]),
    ("train --config job", ["job.yaml"]),
    ("completion f", ["fish"]),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A directory with the completion script of each shell and a file to complete."""
    place = tmp_path_factory.mktemp("shells")
    (place / "job.yaml").touch()
    for shell in completion.SHELLS:
        done = subprocess.run([FORECASTER, "completion", shell], capture_output=True, text=True, check=True)
        assert "`forecaster completion --help` says where to put it" in done.stdout
        assert "Copy this" not in done.stdout
        (place / ("_forecaster" if shell == "zsh" else shell)).write_text(done.stdout)
    return place


def need(shell):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")


def test_bash_completes_commands_options_choices_and_files(scripts):
    need("bash")
    for typed, expected in COMPLETIONS:
        text = SCRIPT_OF_BASH.format(script=scripts / "bash", words=f"forecaster {typed}")
        done = subprocess.run(["bash", "-c", text], cwd=scripts, capture_output=True, text=True)
        assert done.stdout.split() == expected, done.stderr


def test_fish_completes_commands_options_choices_and_files(scripts):
    need("fish")
    asked = "".join(
        f"\necho (complete -C 'forecaster {typed}' | string split -f1 \\t)" for typed, _ in COMPLETIONS
    )
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {scripts / 'fish'}{asked}"],
        cwd=scripts,
        capture_output=True,
        text=True,
    )
    assert [line.split() for line in done.stdout.splitlines()] == [expected for _, expected in COMPLETIONS]


def test_zsh_completes_commands_options_choices_and_files(scripts):
    need("zsh")
    with zsh(scripts) as shell:
        for typed, (expected,) in COMPLETIONS:
            assert shell(f"forecaster {typed}")[-1] == expected


class zsh:  # noqa: N801
    """An interactive shell: completion needs a terminal."""

    def __init__(self, place):
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.chdir(place)
            os.execvpe("zsh", ["zsh", "-f", "-i"], {**os.environ, "TERM": "dumb"})

    def __enter__(self):
        self.send(
            "fpath=($PWD $fpath); autoload -U compinit; compinit -u -D; PS1=; "
            "forecaster() { print -r -- \"got $*.\" }; echo rea''dy\n",
            "ready",
        )
        # The completed line runs.
        return lambda typed: re.search("got (.*)[.]", self.send(f"{typed}\t\n", "got "))[1].split()

    def __exit__(self, *_):
        os.close(self.terminal)
        os.waitpid(self.process, 0)

    def send(self, text, mark):
        os.write(self.terminal, text.encode())
        answer, deadline = "", time.monotonic() + 30
        while mark not in answer:
            assert time.monotonic() < deadline, answer
            if select.select([self.terminal], [], [], 1)[0]:
                answer += os.read(self.terminal, 65536).decode()
        return answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_during_imports_is_one_line_and_exit_code_130(tmp_path, number):
    command = [FORECASTER, "tune", "--source", "snapshot", "--output-dir", tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not catches(process.pid, signal.SIGTERM):
        time.sleep(0.001)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")


@pytest.mark.slow
def test_a_job_runs_from_an_empty_directory_and_names_the_next_commands(tmp_path):
    (tmp_path / "job.yaml").write_text("num_samples: 1\nspace: small\nsource: snapshot\nretrain: false\n")
    command = [FORECASTER, "tune", "--config", "job.yaml"]
    # Another cluster may run on this machine.
    own = {**os.environ, "FORECAST_ADDRESS": "local"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=own, timeout=250)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "artifacts" / "best_pareto_lstm.pt").exists()
    assert "forecaster infer --checkpoint artifacts/best_pareto_lstm.pt" in done.stdout
    assert "forecaster serve --checkpoint artifacts/best_pareto_lstm.pt" in done.stdout
