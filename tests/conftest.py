"""Fixtures for every test: one small model, one Ray cluster, and isolation from the machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Set before torch or Ray are imported anywhere: many small tests on few cores run best single-threaded, and
# tests must not use a cluster that happens to run on the machine, or options that are set there.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in [name for name in os.environ if name == "RAY_ADDRESS" or name.startswith("FORECAST_")]:
    del os.environ[name]
# A shell without job control starts background processes with SIGINT ignored, and their children inherit that; but
# tests send SIGINT to servers, as Ctrl-C would.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


SERVERS = ("test_docs", "test_serving", "test_serve_deploy", "test_container")
"""Files whose tests listen on the application's default ports."""
FIRST = (*SERVERS, "test_job", "test_nodes", "test_ray_up")
"""The files that take longest."""


def pytest_configure(config):
    """Turn off Hypothesis deadlines: on a machine that is busy with other tests, the duration says nothing."""
    settings.register_profile("busy", deadline=None)
    settings.load_profile("busy")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Divide the tests among processes (``pytest -n``): each file's tests stay together, and so do all server files."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            name = Path(nodeid.partition("::")[0]).stem
            return "servers" if name in SERVERS else name

    return ByFile(config, log)


def pytest_collection_modifyitems(config, items):
    """Start with the files that take longest, so that no process ends long after the others."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORECAST_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def snapshot():
    """The bundled BTC-USD snapshot, clean."""
    from forecast import load_series

    return load_series("BTC-USD", source="snapshot")


@pytest.fixture(scope="session")
def tiny_result(snapshot):
    """A small model trained for two epochs on the snapshot."""
    from forecast import TrainConfig, train

    config = TrainConfig(
        source="snapshot",
        likelihood="mse",
        sequence_length=20,
        hidden_size=8,
        num_layers=1,
        max_epochs=2,
        batch_size=128,
    )
    return train(snapshot, config)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint file of ``tiny_result``."""
    from forecast import save_checkpoint

    path = tmp_path_factory.mktemp("model") / "tiny.pt"
    save_checkpoint(tiny_result.checkpoint, path)
    return path


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One local Ray cluster per process, with two CPUs and a fake GPU, for all tests that need one."""
    import ray

    ray.init(
        "local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; it occupies the thread's event loop."""
    from browser import chromium

    with chromium() as found:
        yield found
