"""Writes ``docs/images/page.png``, the served page in a browser. ``make picture`` runs it after a tuning job."""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).with_name("images") / "page.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1180, "height": 860}
START_TIMEOUT_S = 120


def main() -> None:
    """Serve the checkpoint, open the page, and keep a picture of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="artifacts/best_pareto_lstm.pt", help="model to serve")
    checkpoint = parser.parse_args().checkpoint
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "serve_app", "run", "--checkpoint", checkpoint, "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz", server)
        PICTURE.parent.mkdir(exist_ok=True)
        take_picture(f"http://127.0.0.1:{port}/")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise SystemExit(f"the server does not answer at {url}")


def take_picture(url: str) -> None:
    """The page once its forecast is drawn."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(url)
        page.locator("#answer", has_text="Next value").wait_for()
        page.screenshot(path=str(PICTURE))
        browser.close()


if __name__ == "__main__":
    main()
