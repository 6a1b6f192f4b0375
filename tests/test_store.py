"""The model store: versions that never change, and one that is current, whatever is killed or damaged."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from live_ledger import live

from forecast.errors import StoreError
from forecast.job_files import PICK_FILE
from forecast.live.store import CURRENT, Store
from tune_jobs import models


@pytest.fixture
def job(tmp_path):
    """Write the files of a finished job, which differ by their content."""

    def write(content):
        directory = tmp_path / "jobs" / content
        directory.mkdir(parents=True)
        (directory / PICK_FILE).write_text(content)
        (directory / "summary.json").write_text(json.dumps({"content": content}))
        return directory

    return write


@pytest.fixture
def store(tmp_path, job):
    """A store with three versions of a model, each promoted in its turn."""
    store = Store(tmp_path / "models")
    for number, content in enumerate(("one", "two", "three")):
        added = store.add("^GSPC", job(content), f"2024-01-0{number + 1}")
        store.promote("^GSPC", added.version)
    return store


def content_of(store, name="^GSPC"):
    return (store.directory(name) / CURRENT / PICK_FILE).read_text()


def versions(store):
    return [each.version for each in store.versions("^GSPC")]


def test_the_current_version_is_the_one_that_was_promoted_last(store):
    assert content_of(store) == "three"
    assert store.current("^GSPC").version == versions(store)[2]
    assert store.names() == ["^GSPC"]


def test_the_same_job_again_is_the_version_that_there_is(store, tmp_path):
    before = versions(store)
    again = store.add("^GSPC", tmp_path / "jobs" / "two", "2024-01-02")
    assert again.version == before[1]
    assert versions(store) == before


def test_rolling_back_twice_goes_two_versions_back_and_no_further(store):
    one, two, _ = versions(store)
    assert store.rollback("^GSPC") == two
    assert store.rollback("^GSPC") == one
    assert content_of(store) == "one"
    with pytest.raises(StoreError, match="no earlier version"):
        store.rollback("^GSPC")


def test_after_a_rollback_and_a_promotion_the_version_rolled_back_from_is_not_returned_to(store, job):
    store.rollback("^GSPC")
    added = store.add("^GSPC", job("four"), "2024-01-04")
    store.promote("^GSPC", added.version)
    assert store.rollback("^GSPC") == versions(store)[1]


def test_a_damaged_version_is_not_promoted_and_a_rollback_passes_over_it(store):
    one, two, _ = versions(store)
    damaged = store.checkpoint("^GSPC", two)
    damaged.chmod(0o644)
    damaged.write_text("other")
    with pytest.raises(StoreError, match="has changed since it was added"):
        store.promote("^GSPC", two)
    assert store.rollback("^GSPC") == one


def test_a_change_that_was_recorded_but_not_made_is_completed(store):
    one = versions(store)[0]
    store.ledger.add_event("^GSPC", "promoted", version=one)
    assert content_of(store) == "three"
    store.complete("^GSPC")
    assert content_of(store) == "one"


def test_a_version_that_was_not_added_as_a_whole_is_no_version(store, job, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("forecast.live.store.write_json", full)
    with pytest.raises(OSError, match="No space"):
        store.add("^GSPC", job("four"), "2024-01-04")
    assert len(versions(store)) == 3
    assert not list(store.directory("^GSPC").glob(".adding*"))


@pytest.mark.parametrize(
    "wanted",
    [
        ("^GSPC", "current"),
        ("^GSPC", "2020-01-01-none"),
        ("ACME", "1"),
        ("^GSPC", "../^GSPC/current"),
        ("^GSPC", ".."),
    ],
)
def test_what_the_store_does_not_have_is_refused_in_one_line(store, wanted):
    with pytest.raises(StoreError, match="has no"):
        store.promote(*wanted)


@pytest.mark.parametrize("command", [["promote", "NOPE", "1"], ["rollback", "NOPE"], ["show", "NOPE"]])
def test_a_name_that_the_store_lacks_is_refused_with_the_names_that_it_has(store, command):
    with pytest.raises(StoreError, match=r"has no model 'NOPE'; its models: \^GSPC"):
        models.main([*command, "--models", str(store.root)])
    assert not store.directory("NOPE").exists()


def test_a_second_process_is_told_which_one_has_the_lock(store):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom forecast.live.store import Store\n"
        "with Store(Path(sys.argv[1])).lock('^GSPC'):\n    print('locked', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(store.root)], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(StoreError, match=f"process {holder.pid} on"), store.lock("^GSPC"):
            pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with store.lock("^GSPC"):  # a killed process has no lock
        pass


def test_the_command_lists_shows_promotes_and_rolls_back(store, capsys):
    one = versions(store)[0]
    where = ["--models", str(store.root)]
    models.main(["promote", "^GSPC", one, *where])
    models.main(["list", *where])
    assert one in capsys.readouterr().out.splitlines()[-1]
    capsys.readouterr()
    models.main(["promote", "^GSPC", one, *where])
    assert capsys.readouterr().out == f"^GSPC: {one} is the current version already\n"
    models.main(["rollback", "^GSPC", *where])
    models.main(["show", "^GSPC", *where, "--json"])
    text = capsys.readouterr().out
    events = json.loads(text[text.index("[") :])
    assert [(each["event"], each["why"]) for each in events[-2:]] == [
        ("promoted", "by hand"),
        ("rolled_back", "by hand"),
    ]
    assert content_of(store) == "three"


@pytest.mark.parametrize("name", ["..", ".DJI", "a/b"])
def test_the_directory_of_any_name_is_within_the_store(store, job, name):
    store.add(name, job("four"), "2024-01-04")
    assert store.directory(name).resolve().parent == store.root.resolve()
    assert store.names() == sorted(["^GSPC", name])


def test_a_name_whose_first_job_failed_is_no_name(store, capsys):
    with store.lock("TYPO"):
        pass
    assert store.names() == ["^GSPC"]
    assert models.main(["list", "--models", str(store.root)]) == 0
    assert "TYPO" not in capsys.readouterr().out


def test_a_version_that_was_added_and_not_recorded_is_recorded_by_the_next_command(store, job, monkeypatch):
    monkeypatch.setattr(Store, "_record_added", lambda *_: None)
    added = store.add("^GSPC", job("four"), "2024-01-04")
    monkeypatch.undo()
    for _ in range(2):
        store.complete("^GSPC")
    recorded = [event["version"] for event in store.ledger.events("^GSPC", "added")]
    assert recorded == [added.version, *reversed(versions(store)[:3])]


def test_a_current_version_that_was_deleted_can_be_replaced(store):
    one, _, three = versions(store)
    shutil.rmtree(store.path("^GSPC", three))
    store.complete("^GSPC")
    assert store.current("^GSPC") is None
    store.promote("^GSPC", one)
    assert content_of(store) == "one"


def test_a_rollback_by_hand_completes_an_interrupted_promotion_first(store):
    one, _, three = versions(store)
    store.ledger.add_event("^GSPC", "promoted", version=one)
    models.main(["rollback", "^GSPC", "--models", str(store.root)])
    assert store.current("^GSPC").version == three


def test_the_ledger_is_exported_as_parquet_part_by_part(store, tmp_path, capsys, monkeypatch):
    import pandas as pd
    import pyarrow.parquet as pq

    live(store.ledger, "^GSPC", ["A", "B"], [("a", 2)])
    monkeypatch.setattr("forecast.live.ledger.EXPORTED_AT_ONCE", 5)
    models.main(["export", str(tmp_path / "ledger"), "--models", str(store.root)])
    read = {path.stem: pd.read_parquet(path) for path in (tmp_path / "ledger").iterdir()}
    assert list(read["events"]["kind"]) == ["added", "promoted"] * 3
    assert json.loads(read["events"]["details"][1])["before"] is None
    assert "events.parquet: 6 rows" in capsys.readouterr().out
    forecasts = store.ledger.published("A", "B")
    for row in forecasts:
        np.testing.assert_array_equal(
            read["forecasts"].set_index("id").loc[row["id"]]["quantiles"], row["quantiles"]
        )
    assert pq.ParquetFile(tmp_path / "ledger" / "forecasts.parquet").num_row_groups == 5
    assert len(read["forecasts"]) == 24
    # A table without rows has its columns.
    assert list(read["requests"].columns) == ["id", "at", "symbol", "model", "request", "answer"]
    assert read["scores"]["price_id"].dtype == "int64"


@pytest.mark.parametrize(
    "command",
    [["list"], ["show", "^GSPC"], ["rollback", "^GSPC"], ["promote", "^GSPC", "v"], ["export", "e"]],
)
def test_a_directory_that_is_no_store_is_refused_with_its_path_and_stays_as_it_is(tmp_path, command, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for place, reason in (("nope", "there is no such directory"), ("empty", "neither a model nor ledger.db")):
        assert models.run(models.main, [*command, "--models", str(tmp_path / place)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{tmp_path / place} is no model store: " in line
        assert reason in line
        assert "`python -m tune_jobs.update`" in line
    assert list(tmp_path.iterdir()) == [empty]
    assert list(empty.iterdir()) == []


def test_every_event_has_its_reason(store, capsys):
    store.ledger.add_event("^GSPC", "alarm", details={"alarm": "model_old", "text": "it is old"})
    began = store.ledger.events("^GSPC", limit=1)[0]
    store.ledger.add_event("^GSPC", "notified", details={"passed_over": []})
    store.ledger.add_event("^GSPC", "notified", details={"event": began["id"]})
    over = {"alarm": "model_old", "began": {"at": began["at"], "session": "2024-01-03"}}
    store.ledger.add_event("^GSPC", "alarm_over", details=over)
    models.main(["show", "^GSPC", "--models", str(store.root), "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [(row["event"], row["why"]) for row in rows if row["event"] != "promoted"][-5:] == [
        ("added", "trained until 2024-01-03"),
        ("alarm", "it is old"),
        ("notified", "the first use of --notify"),
        ("notified", f"posted the alarm model_old of {began['at'][:10]}"),
        ("alarm_over", "model_old, on since 2024-01-03"),
    ]
    assert all(row["why"] for row in rows if row["event"] != "promoted")


def test_a_rollback_past_damaged_versions_names_the_damage(store):
    for version in versions(store)[:2]:
        damaged = store.checkpoint("^GSPC", version)
        damaged.chmod(0o644)
        damaged.write_text("other")
    with pytest.raises(
        StoreError, match=r"no earlier version to return to \(.*has changed since it was added\)"
    ):
        store.rollback("^GSPC")
