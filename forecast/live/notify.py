"""Posts an event to a webhook."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

TIMEOUT = 10.0
"""Seconds that a webhook has to answer."""


def post(url: str, event: Mapping[str, Any]) -> str | None:
    """Post plain values as JSON; return why that failed, in one line, or None."""
    request = urllib.request.Request(
        url,
        data=json.dumps(event, default=str).encode(),
        headers={"content-type": "application/json"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return None
    except OSError as error:
        return f"the webhook {url} cannot be reached ({error}); check `notify`"
