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
    """What came of it in each replica.

    Args:
        address: Ray cluster the application runs on.
        app: its name.
        timeout_s: seconds that the replicas have.

    Raises:
        ForecastError: when there is no such cluster or application, or it does not answer in time.
    """
    try:
        ray.init(address=address, namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        # Ray shows its token unasked to a cluster it has found itself, and to one that is named only when told to.
        token = "" if "RAY_AUTH_MODE" in os.environ else ", or set RAY_AUTH_MODE=token where it wants one"
        raise ForecastError(
            f"no Ray cluster at {address} ({reason}); start the application with `serve run serve_app:app`{token}"
        ) from error
    try:
        # Serve's own lines about handles are no news here.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        return asyncio.run(_ask_all(app, timeout_s))
    except RayServeException as error:
        raise ForecastError(
            f"no application {app!r} runs at {address}; `serve status` lists them, and `address` names another cluster"
        ) from error
    except TimeoutError as error:
        raise ForecastError(
            f"the replicas of {app!r} did not answer within {timeout_s:g} seconds; look at `serve status`"
        ) from error
    finally:
        ray.shutdown()


async def _ask_all(app: str, timeout_s: float) -> list[ReloadOutcome]:
    """Runs on an event loop, which the application's flags make a handle need."""
    handle = serve.get_app_handle(app)
    outcomes: list[ReloadOutcome] = await handle.broadcast("reload").results_async(timeout_s=timeout_s)
    return outcomes
