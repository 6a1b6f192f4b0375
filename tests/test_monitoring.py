"""The files for Prometheus and Grafana: their metrics are those of the code, and a real Prometheus uses them."""

import itertools
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2 as httpx
import pytest
import yaml
from image import ROOT
from ray.serve import metrics

from serve_app.metrics import Publisher

PLACE = ROOT / "deploy" / "monitoring"
CONFIG, RULES = (yaml.safe_load((PLACE / f"{name}.yml").read_text()) for name in ("prometheus", "alerts"))
DASHBOARD = json.loads((PLACE / "grafana-dashboard.json").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [
    *(rule["expr"] for rule in ALERTS),
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
]
PREFIX = "ray_"
"""What Ray puts before the name of every metric."""
LABELS = {
    "alarm": ["calibration", "worse_than_GARCH"],
    "baseline": ["persistence", "EWMA", "GARCH"],
    "level": ["0.5", "0.9"],
    "name": ["BTC-USD"],
    "state": ["ready", "loaded", "refused"],
    "status": ["200", "422", "503"],
}
"""Values of labels in the tests; other labels have one value."""


@pytest.fixture(scope="module")
def defined():
    """Kind and labels of each metric that the code defines, by the name that Prometheus sees."""
    found = {}

    def recorder(kind):
        def define(name, description="", boundaries=(), tag_keys=()):
            found[PREFIX + name] = (kind, tuple(tag_keys))

        return define

    with pytest.MonkeyPatch.context() as patch:
        for kind in ("Counter", "Gauge", "Histogram"):
            patch.setattr(metrics, kind, recorder(kind))
        Publisher()
    return found


def selectors(expression):
    """The metrics of a PromQL expression, with the labels that select among their series."""
    for name, chosen in re.findall(rf"({PREFIX}\w+)(?:\{{([^}}]*)\}})?", expression):
        yield name.removesuffix("_bucket"), re.findall(r"(\w+) ?[=!]~?", chosen)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_is_one_that_the_code_defines(defined, expression):
    used = list(selectors(expression))
    assert used or expression.startswith("vector(")
    for name, labels in used:
        assert name in defined
        assert set(labels) <= set(defined[name][1])
        kind = (
            "Histogram" if f"{name}_bucket" in expression else "Counter" if "rate(" in expression else "Gauge"
        )
        assert defined[name][0] == kind
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        known = {"le", *itertools.chain(*(defined[name][1] for name, _ in used))}
        assert set(re.split(r", ?", grouped)) <= known


def test_every_panel_of_the_dashboard_has_an_id_a_place_and_the_chosen_data_source():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in PANELS:
        assert panel["description"]
        assert panel["datasource"] == {"uid": "${datasource}", "type": "prometheus"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "name"]


def test_every_alert_has_a_test_in_which_it_fires():
    tests = yaml.safe_load((PLACE / "alerts_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize(
    "command", [["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"],
                ["test", "rules", "alerts_test.yml"]], ids=" ".join
)  # fmt: skip
def test_promtool_accepts_the_files_and_the_rules_do_what_their_tests_say(command):
    if not shutil.which("promtool"):
        pytest.skip("Prometheus is not installed (Debian: prometheus)")
    done = subprocess.run(["promtool", *command], cwd=PLACE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class Agent(BaseHTTPRequestHandler):
    """Answers as Ray's agent does, with every metric that the code defines."""

    def do_GET(self):
        self.server.scrapes += 1
        body = "\n".join(exposition(self.server.defined, self.server.scrapes, self.server.alarm)) + "\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        """Keep the test's output clean."""


def exposition(defined, scrapes, alarm):
    """The lines of every metric: counters grow, alarms are as given, every other gauge is zero or one."""
    for name, (kind, labels) in defined.items():
        for values in itertools.product(*(LABELS.get(label, ["one"]) for label in labels)):
            tags = dict(zip(labels, values, strict=True))
            if kind == "Histogram":
                for bound in ("0.1", "+Inf"):
                    yield line(f"{name}_bucket", {**tags, "le": bound}, 10 * scrapes)
            elif kind == "Counter":
                yield line(name, tags, 10 * scrapes)
            else:
                yield line(name, tags, alarm if "alarm" in tags else float("loaded" in values))
    yield line("ray_node_cpu_utilization", {}, 1)


def line(name, tags, value):
    """One sample, with a label that Ray adds."""
    tags = {**tags, "replica": "one"}
    return f"{name}{{{','.join(f'{label}={json.dumps(found)}' for label, found in tags.items())}}} {value}"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(found, *, seconds=20):
    """Wait until a function returns something true, and return it."""
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.2)
    return answer


@pytest.fixture
def agent(defined):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Agent)
    server.defined, server.scrapes, server.alarm = defined, 0, 1
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def prometheus(agent, tmp_path):
    """Ask a Prometheus with our configuration, which reads this agent four times a second."""
    if not shutil.which("prometheus"):
        pytest.skip("Prometheus is not installed (Debian: prometheus)")
    discovery = tmp_path / "prom_metrics_service_discovery.json"
    # As Ray writes it.
    content = [{"labels": {"job": "ray"}, "targets": [f"127.0.0.1:{agent.server_address[1]}"]}]
    discovery.write_text(json.dumps(content))
    config = (PLACE / "prometheus.yml").read_text()
    config = config.replace("/tmp/ray/prom_metrics_service_discovery.json", str(discovery)).replace(
        "15s", "250ms"
    )
    (tmp_path / "prometheus.yml").write_text(config)
    shutil.copy(PLACE / "alerts.yml", tmp_path)
    address = f"127.0.0.1:{free_port()}"
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address={address}",
             f"--storage.tsdb.path={tmp_path / 'data'}"],
            cwd=tmp_path, stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def ask(path, **parameters):
        try:
            answer = httpx.get(f"http://{address}/api/v1/{path}", params=parameters)
        except httpx.TransportError:
            assert process.poll() is None, log.read_text()
            return {}
        return answer.raise_for_status().json()["data"] if answer.status_code != 503 else {}

    yield ask
    process.terminate()
    process.wait(20)


@pytest.mark.slow
def test_a_real_prometheus_fires_the_alert_of_an_alarm_and_has_data_for_every_panel(prometheus, agent):
    def firing():
        alerts = prometheus("alerts").get("alerts", [])
        return {alert["labels"]["alertname"]: alert for alert in alerts if alert["state"] == "firing"}

    fired = until(lambda: len(found := firing()) >= 2 and found)
    # Every other rule has a time for which its condition must hold.
    assert fired.keys() == {"ForecastWorseThanBaseline", "ForecastCoverageOff"}
    worse = fired["ForecastWorseThanBaseline"]
    assert worse["annotations"]["summary"] == "The forecasts of BTC-USD are worse than those of GARCH"
    assert worse["labels"]["severity"] == "warning"

    # Ray's list names the job `ray`, and the agent has metrics of Ray itself.
    (up,) = prometheus("query", query="up")["result"]
    assert up["metric"]["job"] == CONFIG["scrape_configs"][0]["job_name"]
    assert prometheus("query", query="ray_node_cpu_utilization")["result"] == []

    until(lambda: agent.scrapes > 3)
    for panel in PANELS:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "1m").replace("$name", ".*")
            assert prometheus("query", query=query)["result"], panel["title"]
    health = [rule["health"] for group in prometheus("rules")["groups"] for rule in group["rules"]]
    assert health == ["ok"] * len(ALERTS)

    agent.alarm = 0
    assert until(lambda: not firing())
