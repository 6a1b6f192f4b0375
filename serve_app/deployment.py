"""The Ray Serve side: the number of replicas, their resources, and how a replica starts and changes its models."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp

from forecast.config import from_environment, parse_settings, variable_of
from forecast.errors import ForecastError, UsageError, spell_parameters
from forecast.model.device import DEFAULT_GPU_SHARE, device_for_share
from forecast.model.loading import load_card
from serve_app.catalog import require_usable_file
from serve_app.gateway import build_web_app
from serve_app.live import LiveLedger
from serve_app.metrics import Measurements, Publisher
from serve_app.models import Models, ReloadOutcome, logger
from serve_app.options import API_KEY_VARIABLE, ServeOptions
from serve_app.ports import answers, require_free_port, set_internal_ports
from serve_app.ray_internals import defer_observers, gpus_of_this_machine, has_cluster
from serve_app.recording import Recorder
from serve_app.served_model import Engines
from serve_app.service import RETRY_AFTER_S, ForecastService

CHECKPOINT = "checkpoint"
"""Key of ``user_config``: the checkpoint to serve. A new path is loaded without a restart."""
SERVE_LIMIT = 10_000
"""Serve's own limit on requests under way, too high to matter: the application refuses requests itself when it is busy,
and still answers health checks."""
DRAIN_MARGIN_S = 10.0
"""Seconds a leaving replica has beyond a request's time limit: Serve sends it new requests for the first five."""
FOLLOWING_S = 1.0
"""Seconds between two looks at the current versions of a model store."""
LOCAL = "local"
"""Ray's name for a cluster that starts and ends with the process."""


@serve.ingress()
class Forecaster:
    """One replica: models behind the web application."""

    def __init__(self, options: ServeOptions, api_key: str | None) -> None:
        device = assigned_device()
        if device == "cpu":
            # A single window has no work for several threads, and replicas share the machine. Torch reads this when it
            # is imported, which a replica of exported models never does.
            os.environ["OMP_NUM_THREADS"] = "1"
        self._measurements, self._publisher = Measurements(), Publisher()
        wait_s = options.batch_wait_ms / 1000 if options.batch_wait_ms is not None else None
        engines = Engines(device, options.engine, options.max_batch_size, wait_s)
        self._models = Models(engines, options.cache_mb)
        self._ledger = LiveLedger(self._models, options.ledger)
        self._recorder = Recorder(self._ledger, options.record_share) if options.record_share else None
        service = ForecastService(
            self._models,
            self._measurements,
            max_forecasts=options.max_forecasts,
            age=options,
            recorder=self._recorder,
        )
        self._web = build_web_app(service, self._ledger, options, api_key)
        self._tasks: list[asyncio.Task[None]] = []
        self._asked_for = ""

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the ASGI application; Ray Serve calls this after the constructor."""
        return self._web

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Load the checkpoint that ``user_config`` names: at the start, and whenever the name changes.

        Raises:
            ForecastError: when it cannot be used at the start; later it is refused, and the old models stay.
        """
        before, self._asked_for = self._asked_for, user_config[CHECKPOINT]
        if not self._tasks:
            await self._models.load(self._asked_for)
            self._tasks = [
                asyncio.create_task(
                    self._publisher.publish_forever(self._measurements, self._models, self._recorder)
                ),
                asyncio.create_task(self._publisher.read_forever(self._ledger)),
                asyncio.create_task(self._follow_forever()),
            ]
        elif before != self._asked_for:
            # Serve also calls this when it renumbers replicas: a file changed in the meantime waits for `reload`.
            self._count(await self._models.replace(self._asked_for))
        write_log()

    async def _follow_forever(self) -> None:
        """Serve the versions that become current in a model store."""
        while True:
            await asyncio.sleep(FOLLOWING_S)
            if (outcome := await self._models.follow()) is not None:
                self._count(outcome)

    async def reload(self) -> ReloadOutcome:
        """Load the served checkpoint again because its file has changed, for ``python -m serve_app reload``."""
        return self._count(await self._models.replace())

    def _count(self, outcome: ReloadOutcome) -> ReloadOutcome:
        self._measurements.reloads["refused" if outcome.refused else "loaded"] += 1
        write_log()
        return outcome


def write_log() -> None:
    """Write out buffered log records: Serve holds them back until there are a thousand, because writing each one halves
    a replica's requests per second."""
    for handler in logger.handlers:
        handler.flush()


def app(args: dict[str, Any]) -> Application:
    """Build the application.

    Args:
        args: the ``name=value`` arguments of ``serve run``, or ``args`` of a Serve config file: the fields of
            ``ServeOptions``. They are validated here and not by Ray Serve, so that a mistake is reported in one line.
            An option that is not among them comes from its environment variable.

    Raises:
        click.ClickException: when the checkpoint cannot be used or the cluster lacks the resources; the message is one
            line, which the Serve command prints before it exits with 1. Likewise when ``serve run`` would start a
            cluster whose port is taken.
    """
    given = from_environment(ServeOptions) | args

    def spell(name: str, value: str | None) -> str:
        from_variable = value is None and name in given and name not in args
        return variable_of(name) if from_variable else _as_argument(name, value)

    try:
        application = build(parse_settings(ServeOptions, given))
        if starts_cluster():
            http = HTTPOptions()
            prepare_cluster(http.host or "", http.port)
        return application
    except ForecastError as error:
        raise click.ClickException(spell_parameters(str(error), spell)) from None


def _as_argument(name: str, value: str | None) -> str:
    """Spell a parameter as ``serve run`` takes it."""
    return f"option {name}" if value is None else f"{name}={value}"


def build(options: ServeOptions) -> Application:
    """Build the application, bound to its options.

    Raises:
        ForecastError: when the checkpoint cannot be used, the cluster lacks the resources, or a required API key is not
            set.
    """
    # A replica may run in another working directory.
    checkpoint = Path(options.checkpoint).absolute()
    if options.ledger is not None:
        options = options.model_copy(update={"ledger": str(Path(options.ledger).absolute())})
    if checkpoint.is_dir():
        require_usable_file(checkpoint)
    else:
        load_card(checkpoint)
    gpus = replica_gpus(options.num_gpus, cluster_gpus())
    api_key = os.environ.get(API_KEY_VARIABLE)
    if not api_key and options.require_api_key:
        raise UsageError(
            f"require_api_key: {API_KEY_VARIABLE} is not set where the application is built; set it on every node, "
            "before Ray starts there"
        )
    if not api_key:
        logger.warning("%s is not set: anyone who reaches the port may send requests", API_KEY_VARIABLE)
    deployment = serve.deployment(
        num_replicas=None if options.max_replicas else options.replicas,
        autoscaling_config=_autoscaling(options),
        user_config={CHECKPOINT: str(checkpoint)},
        max_ongoing_requests=SERVE_LIMIT,
        max_queued_requests=-1,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        # A replica that is being replaced leaves once its successor answers.
        max_surge_percent=100,
        graceful_shutdown_timeout_s=options.request_timeout_s + DRAIN_MARGIN_S,
        health_check_period_s=5,
        logging_config=LoggingConfig(
            encoding=options.log_format.upper(), enable_access_log=options.access_log
        ),
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": gpus},
    )(Forecaster)
    bound: Application = deployment.bind(options, api_key)
    return bound


def _autoscaling(options: ServeOptions) -> AutoscalingConfig | None:
    if options.max_replicas is None:
        return None
    return AutoscalingConfig(
        min_replicas=options.replicas,
        max_replicas=options.max_replicas,
        target_ongoing_requests=options.target_ongoing_requests,
    )


def replica_gpus(asked: float | None, available: float) -> float:
    """Return the GPU share that a replica asks for; it would wait forever for a share that is not there.

    Raises:
        UsageError: when the cluster does not have the share.
    """
    if asked is None:
        return DEFAULT_GPU_SHARE if available else 0.0
    if asked > available:
        raise UsageError(
            f"num_gpus={asked:g}: the cluster has {available:g} GPUs; ask for a smaller share, or omit num_gpus"
        )
    return asked


def ray_address() -> str:
    """Return the Ray cluster that ``RAY_ADDRESS`` names, else ``LOCAL``, a cluster for this application alone."""
    return os.environ.get("RAY_ADDRESS") or LOCAL


def starts_cluster() -> bool:
    """Tell whether ``serve run`` is about to start a local cluster, instead of using one that runs."""
    return not ray.is_initialized() and not has_cluster()


def prepare_cluster(host: str, port: int) -> Callable[[], None]:
    """Prepare the local cluster that this process starts next, whose application will listen on ``port``.

    Sets the environment of its processes, and defers its observers (``ray_internals.defer_observers``).

    Returns:
        A function to call before the cluster is shut down.

    Raises:
        ForecastError: when the port is taken.
    """
    require_free_port(host, port)
    set_internal_ports(port)
    return defer_observers(until=lambda: answers(host, port))


def cluster_gpus() -> float:
    """Count the GPUs of the cluster that the application will run on.

    That is the connected cluster, the one in ``RAY_ADDRESS``, or else the local one that ``serve run`` is about to
    start, which will count this machine's GPUs as this does.
    """
    if not ray.is_initialized() and ray_address() != LOCAL:
        ray.init(namespace="serve", log_to_driver=False)
    if ray.is_initialized():
        return float(ray.cluster_resources().get("GPU", 0.0))
    return gpus_of_this_machine()


def assigned_device() -> str:
    """Return the device of this replica's models: the GPU that Ray gave it a share of, else the CPU."""
    return device_for_share(ray.get_runtime_context().get_accelerator_ids().get("GPU"))
