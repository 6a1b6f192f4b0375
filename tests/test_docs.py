"""The commands of README and docs, run exactly as written; and the links between the pages.

A comment on the line before a block says how to treat it:

- ``stays: URL``: it stays in the foreground, and answers at that address;
- ``tested: FILE``: that file runs its commands, with other ports and hosts;
- ``needs: cloud``, ``collector``, ``cron``, ``docker``, ``kubernetes`` or ``systemd``: it needs something that no test
  has.

To save time, the ``python`` and the ``forecaster`` of these tests add options to the commands that train.
"""

import contextlib
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
import torch
from processes import family
from ray.cluster_utils import Cluster

from docs.make_reference import PAGES, REFERENCE
from forecast.cli.forms import COMMANDS, PROGRAM, short_form
from forecast.prices.cache import store
from forecast.prices.snapshot import load
from serve_app.flags import SERVE_FLAGS

ROOT = Path(__file__).parents[1]
PAGES_TO_READ = sorted(
    path.relative_to(ROOT).as_posix()
    for place in (ROOT, ROOT / "docs")
    for path in (place.glob("*.md") if place == ROOT else place.rglob("*.md"))
)
LEARNING = [
    "docs/tutorial.md",
    "docs/serving.md",
    *(
        f"docs/how-to/{name}.md"
        for name in (
            "swap-a-model",
            "monitor",
            "own-csv",
            "price-files",
            "bars-and-calendars",
            "resume",
            "without-torch",
            "another-symbol",
            "many-symbols",
            "dataframes",
            "command-line",
        )
    ),
]
"""Read in this order: each page starts from the files, and the server, that the previous ones left."""
SESSIONS = dict.fromkeys(LEARNING, "learning") | dict.fromkeys(
    (
        "README.md",
        "README.pt-BR.md",
        *(f"docs/{name}.md" for name in ("results", "tuning", "how-to/deploy")),
    ),
    "readme",
)
NOT_HERE = {"cloud", "collector", "cron", "docker", "kubernetes", "systemd"}
SHORT = "--windows-per-epoch 320 --members 1"
"""Options with which the jobs of the pages train as little as possible."""
REPLACED = """\
#!/bin/bash
case "$*" in
  "-m tune_jobs.pareto"* | "tune "*)
    asked=$(sed -nE 's/.*--num-samples ([0-9]+).*/\\1/p' <<< "$*")
    set -- "$@" --num-samples $((${{asked:-10}} / 10)) --space small {SHORT} --address "$CLUSTER" ;;
  "-m tune_jobs.update"* | "update "*) set -- "$@" --num-samples 1 --space small {SHORT} --address "$CLUSTER" ;;
  "-m forecast train"* | "train"*) set -- "$@" --max-epochs 1 ;;
  "-m forecast backtest"*--from-trial*) set -- "$@" --folds 2 --fold-rows 40 --seeds 1 ;;
  "-m forecast backtest"*) set -- "$@" --folds 2 --fold-rows 40 --seeds 1 --max-epochs 1 ;;
  # Other clusters run on this machine: name that of the pages' server.
  "-m serve_app reload"*) export RAY_ADDRESS=$(cat "$SERVER_ADDRESS") ;;
esac
exec "{program}" "$@"
"""


CURL = f"""\
#!/bin/bash
exec {shutil.which("curl")} --fail-with-body "$@"
"""
"""Makes a page fail when one of its requests is refused."""
COMMAND = re.compile(
    r"python -m (forecast\.cli\.completion|forecast|serve_app|tune_jobs\.\w+)\b([^|>&;')\n]*)"
)
"""One of this project's commands: its module and its arguments."""
LONG_FORMS = {
    short_form(long): long
    for long in (
        "python -m serve_app reload",
        "python -m serve_app flags",
        *(command.long_form for command in COMMANDS.values()),
    )
}
SHORT_COMMAND = re.compile(rf"\b({'|'.join(LONG_FORMS)})(?![\w-])")
PARSERS = {
    "forecast.cli.completion": "forecast.cli.completion",
    "forecast": "forecast.__main__",
    "serve_app": "serve_app.__main__",
    "tune_jobs.pareto": "tune_jobs.pareto",
    "tune_jobs.backtest": "tune_jobs.backtest",
    "tune_jobs.models": "tune_jobs.models",
    "tune_jobs.update": "tune_jobs.update",
}
CURL_REFUSED = 22
"""curl's exit code for a refused request."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the comment before it (``told``), and the block after it."""

    language: str
    text: str
    told: str
    following: str

    @property
    def commands(self):
        """The block's text without comments."""
        return re.sub(r"\s+#.*", "", self.text).strip()

    @property
    def runs_here(self):
        kind = self.told.partition(": ")[0]
        return self.language in ("bash", "python") and kind not in ("tested", "needs")


def blocks_of(page):
    text = (ROOT / page).read_text()
    found = re.findall(r"(?:^<!-- (.*?) -->\n)?^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    after = [content for _, _, content in found[1:]] + [""]
    return [
        Block(language, content, told, following)
        for (told, language, content), following in zip(found, after, strict=bool(found))
    ]


class Reader:
    """A person with a copy of the checkout who types the commands of the pages."""

    def __init__(self, place, cluster):
        self.place = place / "clone"
        ignored = shutil.ignore_patterns(
            ".git", ".venv", "artifacts", "build", "site", ".*_cache", ".hypothesis", "__pycache__"
        )
        shutil.copytree(ROOT, self.place, ignore=ignored)
        (self.place / ".venv").symlink_to(sys.prefix)
        for name in ("constraints.txt", "pyproject.toml"):
            os.utime(self.place / name, (0, 0))  # the environment exists already
        wrappers = place / "bin"
        wrappers.mkdir()
        forecaster = REPLACED.format(program=Path(sys.executable).with_name(PROGRAM), SHORT=SHORT)
        python = REPLACED.format(program=sys.executable, SHORT=SHORT)
        for name, text in (("python", python), (PROGRAM, forecaster), ("curl", CURL)):
            (wrappers / name).write_text(text)
            (wrappers / name).chmod(0o755)
        left_out = {"RAY_ADDRESS", *SERVE_FLAGS}
        clean = {name: value for name, value in os.environ.items() if name not in left_out}
        self.environment = {
            **clean,
            "PATH": f"{wrappers}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "NUM_SAMPLES": "1",
            "ARGS": f"--space small --address {cluster}",
            "CLUSTER": cluster,
            "FORECAST_CACHE_DIR": str(place / "cache"),
            "SERVER_ADDRESS": str(place / "server_address"),
        }
        write_original_checkpoint(self.place / "checkpoints" / "best.pt")
        self.done, self.servers = set(), {}

    def run(self, block):
        """Run a block, once per session."""
        if block.commands in self.done:
            return
        self.done.add(block.commands)
        if block.told.startswith("stays: "):
            self.start(block, block.told.removeprefix("stays: "))
            return
        command = [sys.executable, "-c", block.text] if block.language == "python" else self.shell(block)
        done = subprocess.run(
            command, cwd=self.place, env=self.environment, capture_output=True, text=True, timeout=400
        )
        expected = CURL_REFUSED if '"ok":false' in block.following else 0
        assert done.returncode == expected, f"{block.text}\n{done.stdout}\n{done.stderr}"

    @staticmethod
    def shell(block):
        return ["bash", "-euo", "pipefail", "-c", block.text]

    def start(self, block, url):
        """Start a command that stays in the foreground, and stop the server that answered on the same path before.

        A machine has room for only one server of the application, whatever its port.
        """
        path = httpx.URL(url).path
        if path in self.servers:
            self.stop(path)
        log = self.place.parent / "log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                self.shell(block),
                cwd=self.place,
                env=self.environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.servers[path] = process
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url).status_code == 200:
                    break
            time.sleep(0.3)
        addresses = {
            found[1]
            for _, words in family(process.pid)
            if (found := re.search(r"--gcs-address=(\S+)", words))
        }
        Path(self.environment["SERVER_ADDRESS"]).write_text("".join(addresses))

    def stop(self, path):
        process = self.servers.pop(path)
        everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        os.killpg(process.pid, signal.SIGINT)  # to the group, as Ctrl-C does: `make` does not pass it on
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(40)
        # A process left behind would answer instead of the next server.
        _, left = psutil.wait_procs(everybody, 10)
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def write_original_checkpoint(path):
    """Write a file as the original system did; ``test_checkpoint.py`` tests its contents."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleDict(
        {"lstm": torch.nn.LSTM(1, 8, batch_first=True), "regressor": torch.nn.Linear(8, 1)}
    )
    config = {"symbol": "BTC-USD", "feature": "Close", "sequence_length": 60}
    content = {
        "model_state": layers.state_dict(),
        "config": config,
        "feature_mean": 4000.0,
        "feature_std": 3000.0,
    }
    path.parent.mkdir()
    torch.save(content, path)


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """One reader per session; their jobs share a cluster, which takes longer to start than the jobs take to run."""
    sessions, cluster = (
        {},
        Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}),
    )

    def reader(page):
        name = SESSIONS.get(page, page)
        if name not in sessions:
            for other in sessions.values():
                for path in list(other.servers):
                    other.stop(path)
            sessions[name] = Reader(tmp_path_factory.mktemp("reader"), cluster.address)
        return sessions[name]

    yield reader
    for one in sessions.values():
        for path in list(one.servers):
            one.stop(path)
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page",
    [
        page
        for page in [*SESSIONS, *(page for page in PAGES_TO_READ if page not in SESSIONS)]
        if any(block.runs_here for block in blocks_of(page))
    ],
)
def test_every_command_of_a_page_works_as_it_stands(readers, page, monkeypatch):
    reader = readers(page)
    with monkeypatch.context() as patch:
        # A symbol that Yahoo sent once, so that the cache has it when Yahoo cannot be reached.
        patch.setenv("FORECAST_CACHE_DIR", reader.environment["FORECAST_CACHE_DIR"])
        store("ETH-USD", load("BTC-USD"))
    for block in blocks_of(page):
        if block.runs_here:
            reader.run(block)


@pytest.mark.parametrize("page", PAGES_TO_READ)
def test_what_is_said_of_a_block_is_true_and_every_link_leads_somewhere(page):
    for block in blocks_of(page):
        kind, _, what = block.told.partition(": ")
        if kind == "tested":
            there = (ROOT / what).read_text()
            for line in block.commands.splitlines():
                # That file may use other options, ports, hosts and clients.
                words = [
                    word for word in line.split()[:2] if word.isalpha() and word not in ("curl", "export")
                ]
                assert all(word in there for word in words), line
        elif kind == "needs":
            assert what in NOT_HERE, block.text
        elif block.told:
            assert kind == "stays", block.told
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http", "#")):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES_TO_READ)
def test_every_command_of_this_project_has_the_options_it_is_given(page):
    """This also checks the commands that no test runs."""
    for block in blocks_of(page):
        if block.language != "bash":
            continue
        text = SHORT_COMMAND.sub(lambda found: LONG_FORMS[found[1]], block.text.replace("\\\n", " "))
        for module, arguments in COMMAND.findall(text):
            parser = importlib.import_module(PARSERS[module]).build_parser()
            # The files of --config are not there.
            _, unknown = parser.parse_known_args(shlex.split(arguments, comments=True))
            assert not unknown


def test_every_page_of_the_docs_is_reached_from_their_first():
    seen, queue = set(), ["README.md"]
    while queue:
        page = queue.pop()
        if page in seen:
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+\.md)(?:#[^)]*)?\)", (ROOT / page).read_text())
        queue += [((ROOT / page).parent / link).resolve().relative_to(ROOT).as_posix() for link in links]
    assert set(PAGES_TO_READ) <= seen


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_what_the_code_says_now(name):
    assert (REFERENCE / name).read_text() == PAGES[name](), "run `make docs`"
