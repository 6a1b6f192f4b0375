"""The Ray Serve side: how many replicas, what each asks for, and what a replica does when it starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig

from forecast.checkpoint import load_checkpoint
from forecast.command import parse_settings
from forecast.errors import ForecastError, UsageError
from forecast.model import DEFAULT_GPU_SHARE, device_for_share
from forecast.predictor import Predictor
from serve_app.options import ServeOptions
from serve_app.routes import build_web_app

RETRY_AFTER_SECONDS = 1.0


@serve.ingress()
class Forecaster:
    """One replica: a loaded model behind the web application."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._predictor = Predictor(options.checkpoint, assigned_device())
        if self._predictor.device.type == "cpu":
            # One window at a time has no work for several threads, and replicas share the machine.
            torch.set_num_threads(1)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve asks for after the constructor."""
        return build_web_app(self._predictor, max_body_bytes=self._options.max_body_bytes)


def app(args: dict[str, Any]) -> Application:
    """Build the application.

    Args:
        args: the ``name=value`` arguments of ``serve run``, or ``args`` of a Serve config file: the fields of
            ``ServeOptions``. They are validated here and not by Ray Serve, so that a mistake is one line.

    Raises:
        click.ClickException: with one clear line, when the checkpoint cannot be used or the cluster has not
            what is asked for. The Serve command prints it and exits with 1.
    """
    try:
        options = parse_settings(ServeOptions, args, spell=lambda name: f"option {name}")
        # A replica may run in another directory.
        options = options.model_copy(update={"checkpoint": str(Path(options.checkpoint).absolute())})
        load_checkpoint(options.checkpoint)
        gpus = replica_gpus(options.num_gpus, cluster_gpus())
    except ForecastError as error:
        raise click.ClickException(str(error)) from None
    deployment = serve.deployment(
        num_replicas=options.replicas,
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_SECONDS),
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": gpus},
    )(Forecaster)
    bound: Application = deployment.bind(options)
    return bound


def replica_gpus(asked: float | None, available: float) -> float:
    """The GPU share a replica asks for: a hard request, for which it would wait for ever.

    Raises:
        UsageError: when a share is asked for that the cluster does not have.
    """
    if asked is None:
        return DEFAULT_GPU_SHARE if available else 0.0
    if asked > available:
        raise UsageError(
            f"num_gpus={asked:g}: the cluster has {available:g} GPUs; ask for less, or leave it out"
        )
    return asked


def cluster_gpus() -> float:
    """GPUs of the cluster the application will run on.

    That is the connected one, the one in ``RAY_ADDRESS``, or else the local one that ``serve run`` is about
    to start, which has this machine's.
    """
    if not ray.is_initialized() and os.environ.get("RAY_ADDRESS", "local") != "local":
        ray.init(namespace="serve", log_to_driver=False)
    if ray.is_initialized():
        return float(ray.cluster_resources().get("GPU", 0.0))
    return float(torch.cuda.device_count())


def assigned_device() -> str:
    """Where this replica's model runs: on the GPU that Ray gave it a share of, else on the CPU."""
    return device_for_share(ray.get_runtime_context().get_accelerator_ids().get("GPU"))
