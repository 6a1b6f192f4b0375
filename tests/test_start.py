"""A job's start beside its imports, and its end."""

import subprocess
import sys
import time

import psutil
import pytest
from processes import family
from running_job import start_job

from forecast.errors import UsageError
from tune_jobs.startup import cluster_beside


def test_an_error_of_the_cluster_waits_for_whoever_connects():
    with cluster_beside("ray://head:10001") as cluster:
        cluster.settle()
        for _ in range(2):
            with pytest.raises(UsageError, match="not as a Ray client"):
                cluster.connect()


def test_the_first_part_of_a_job_imports_nothing_that_ray_imports_meanwhile():
    code = "import sys, tune_jobs.job; print({'ray', 'optuna'} & {*sys.modules}, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "set() True"


@pytest.mark.slow
def test_a_job_starts_no_process_that_it_does_not_use_and_leaves_none_behind(tmp_path):
    process = start_job(tmp_path, "--num-samples", "2", "--no-retrain", "--quiet")
    seen, workers = {}, set()
    while process.poll() is None:
        for each, title in family(process.pid):
            seen[each.pid] = each
            if title.startswith("ray::") and "Agent" not in title:
                workers.add(each.pid)
            assert not any(unused in title for unused in ("dashboard.py", "monitor.py"))
        time.sleep(0.1)
    assert process.returncode == 0, process.communicate()
    assert 1 <= len(workers) <= psutil.cpu_count()
    _, alive = psutil.wait_procs(list(seen.values()), timeout=5)
    assert alive == []


def test_an_import_that_a_signal_interrupted_does_not_keep_the_cluster_from_ending():
    # A signal can leave the import lock with the main thread: the other one would wait for it forever.
    script = (
        "import _imp, threading\n"
        "from tune_jobs.startup import ClusterBeside\n"
        "_imp.acquire_lock()\n"
        "beside = ClusterBeside('nowhere:1')\n"
        "beside.end()\n"
        "print('waits' if beside._thread.is_alive() else 'ended')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "ended\n", done.stderr
