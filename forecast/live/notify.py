"""Posts an event to a webhook."""

from __future__ import annotations

import http.client
import json
import re
import urllib.request
from collections.abc import Mapping
from typing import Any

TIMEOUT = 10.0
"""Seconds within which a webhook must answer."""


def post(url: str, event: Mapping[str, Any]) -> str | None:
    """Post plain values as JSON; return the reason for a failure, in one line, or None.

    The line names only the host of the address, because the rest is often a secret.
    """
    host = re.split("[/?#]", url, maxsplit=3)[2].rpartition("@")[2]
    try:
        request = urllib.request.Request(
            url,
            data=json.dumps(event, default=str).encode(),
            headers={"content-type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return None
    except OSError as error:
        return f"the webhook at {host} did not take the event ({error}); check `notify`"
    except (http.client.HTTPException, ValueError) as error:
        # Their text may repeat the address.
        return f"the webhook at {host} cannot be used ({type(error).__name__}); check `notify`"
