"""Tell every replica of a running application to load its checkpoints again."""

from __future__ import annotations

import asyncio
import logging
import os

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from forecast.errors import ForecastError
from serve_app.models import ReloadOutcome


def reload(address: str, app: str, timeout_s: float) -> list[ReloadOutcome]:
    """Reload the checkpoints in every replica, and return each replica's outcome.

    Args:
        address: Ray cluster the application runs on.
        app: the application's name.
        timeout_s: seconds to wait for the replicas.

    Raises:
        ForecastError: when there is no such cluster or application, or it does not answer in time.
    """
    try:
        ray.init(address=address, namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        # By default Ray sends its token to a cluster it found itself; to one given by address, only in this mode.
        token = "" if "RAY_AUTH_MODE" in os.environ else ", or set RAY_AUTH_MODE=token if it needs a token"
        raise ForecastError(
            f"no Ray cluster at {address} ({reason}); start the application with `serve run serve_app:app`{token}"
        ) from error
    try:
        # Serve's own log lines about handles are noise here.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        return asyncio.run(_ask_all(app, timeout_s))
    except RayServeException as error:
        raise ForecastError(
            f"no application {app!r} runs at {address}; `serve status` lists the applications, and "
            "`address` names another cluster"
        ) from error
    except TimeoutError as error:
        raise ForecastError(
            f"the replicas of {app!r} did not answer within {timeout_s:g} seconds; check `serve status`"
        ) from error
    finally:
        ray.shutdown()


async def _ask_all(app: str, timeout_s: float) -> list[ReloadOutcome]:
    """Call ``reload`` on every replica; with the application's flags, a handle works only on an event loop."""
    handle = serve.get_app_handle(app)
    outcomes: list[ReloadOutcome] = await handle.broadcast("reload").results_async(timeout_s=timeout_s)
    return outcomes
