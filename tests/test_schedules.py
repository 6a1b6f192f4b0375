"""What runs the update after each session: files for cron and systemd, which check them where they are installed."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from image import ROOT

from forecast.config import parse_settings
from tune_jobs.update import build_parser
from tune_jobs.update_options import UpdateOptions

CRON = ROOT / "deploy" / "cron" / "forecaster"
UNITS = [ROOT / "deploy" / "systemd" / f"forecaster-update.{kind}" for kind in ("service", "timer")]
HOME = "/srv/forecaster"
"""Where the files suppose the project to be."""
JOB = re.compile(r"^(?:# )?(\d\S*(?: \S+){4}) (\w+) (.*)$", re.M)
"""A line of times, a user and a command, which may be commented out."""


def options_of(command):
    """The update's options in a shell command."""
    arguments = command.partition(" -m tune_jobs.update ")[2].partition("&&")[0]
    return parse_settings(UpdateOptions, vars(build_parser().parse_args(shlex.split(arguments))))


def test_the_crontab_runs_updates_that_there_are():
    active, stocks, compose = JOB.findall(CRON.read_text())
    for _, user, command in (active, stocks):
        assert user == "forecaster"
        assert command.startswith(f"cd {HOME} && .venv/bin/python -m tune_jobs.update ")
        options = options_of(command)
        # Another source falls back on prices that are years old.
        assert (options.source, options.quiet) == ("yahoo", True)
    assert [options_of(command).store_name for _, _, command in (active, stocks)] == ["BTC-USD", "stocks"]
    assert compose[2].endswith("docker compose run --rm -T update")
    # Cron passes over a file with a dot in its name, a last line without an end, and what follows a percent sign.
    assert "." not in CRON.name
    assert CRON.read_text().endswith("\n")
    assert "%" not in CRON.read_text()


def test_cron_accepts_the_crontab(tmp_path):
    if not shutil.which("crontab"):
        pytest.skip("cron is not installed (Debian: cron)")
    # A user's crontab, which this program checks, has no column of users.
    text = JOB.sub(lambda found: f"{found[1]} {found[3]}", CRON.read_text())
    assert text.count("forecaster cd") == 0
    path = tmp_path / "crontab"
    path.write_text(text)
    done = subprocess.run(["crontab", "-n", str(path)], capture_output=True, text=True)
    if "invalid option" in done.stderr:
        pytest.skip("this cron checks no file")
    assert done.returncode == 0, done.stderr


def test_the_unit_runs_an_update_that_there_is_where_it_may_write():
    text = UNITS[0].read_text()
    options = options_of(re.search(r"^ExecStart=(.*)$", text, re.M)[1])
    assert (options.source, options.quiet) == ("yahoo", True)
    state = re.search(r"^StateDirectory=(.*)$", text, re.M)[1]
    assert str(options.models).startswith(f"/var/lib/{state}/")
    assert "ProtectSystem=strict" in text
    assert re.search(r"^Persistent=true$", UNITS[1].read_text(), re.M)
    for found in re.findall(r"OnCalendar=(.*)$", UNITS[1].read_text(), re.M):
        assert found.endswith(" UTC")


@pytest.mark.parametrize("path", [CRON, UNITS[0]], ids=["cron", "systemd"])
def test_tuning_jobs_do_not_take_the_place_of_the_server_in_ray_s_list_of_metrics(path):
    """Ray lists the agents of the cluster that was last started in its temporary directory."""
    (directory,) = re.findall(r"RAY_TMPDIR=(\S+)$", path.read_text(), re.M)
    assert directory not in ("/tmp", "/tmp/ray")


def test_systemd_accepts_the_units(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed (Debian: systemd)")
    for unit in UNITS:
        text = unit.read_text().replace(f"{HOME}/.venv/bin/python", sys.executable)
        (tmp_path / unit.name).write_text(text.replace(HOME, str(ROOT)))
    verify = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in UNITS)]
    done = subprocess.run(verify, capture_output=True, text=True)
    # It says so, and no more, if it does not know a setting.
    named = [line for line in done.stderr.splitlines() if "forecaster" in line]
    assert (done.returncode, named) == (0, []), done.stderr
