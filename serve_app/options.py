"""The options of the serving application: ``name=value`` of ``serve run``, or ``args`` in a Serve config.

An option that these leave out comes from its environment variable (``forecast.config.from_environment``).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from forecast.config import AgeOptions
from forecast.names import split_names

DEFAULT_CHECKPOINT = "artifacts/best_pareto_lstm.pt"
DEFAULT_APP = "default"
"""Serve's name for an application when ``serve run`` is not given one."""
API_KEY_VARIABLE = "FORECAST_API_KEY"
"""The API key is not an option, because people other than its owner can read command lines and config files."""


CACHE_MB, CACHED_MODELS = 24, 16
"""The memory that loaded models of a directory may take in a replica, unless ``cache_mb`` is given, and the number of
files that are kept even if they need more: a small directory of large models stays loaded."""


class ServeOptions(AgeOptions):
    """Options of the application; an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = Field(
        DEFAULT_CHECKPOINT,
        min_length=1,
        description="checkpoint or exported model (.onnx) to serve, a directory of them for different symbols, or a "
        "model store",
    )
    ledger: str | None = Field(
        None,
        min_length=1,
        description="ledger of published forecasts and their scores (unless given, ledger.db of the served directory)",
    )
    record_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the requests to /predict that are recorded in the ledger, with their answers",
    )
    replicas: int = Field(1, ge=1, description="processes that answer requests")
    max_replicas: int | None = Field(
        None,
        ge=1,
        description="most replicas that autoscaling starts under load (unless given, no autoscaling)",
    )
    target_ongoing_requests: float = Field(
        16.0, gt=0, description="requests under way per replica that autoscaling aims for"
    )
    num_cpus: float = Field(1.0, ge=0, description="CPUs that each replica asks for")
    num_gpus: float | None = Field(
        None,
        ge=0,
        description="GPU share that each replica asks for (unless given, a quarter if the cluster has GPUs, else "
        "none)",
    )
    # ``forecast.inference.engines.EngineName``, whose import would load torch before ``--help`` answers.
    engine: Literal["auto", "onnx", "torch"] = Field(
        "auto",
        description="engine that runs the network: onnx (ONNX Runtime, CPU only), torch, or auto: onnx on a CPU if it "
        "agrees with torch, and for an exported model",
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        description="most windows that a network runs at a time (unless given, 16 on a CPU, 256 on a GPU)",
    )
    batch_wait_ms: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="milliseconds that a window waits for other windows (unless given, 0 on a CPU, 2 on a GPU)",
    )
    max_queued_requests: int = Field(
        256,
        ge=1,
        description="most requests under way in each replica; further requests are refused with 503",
    )
    request_timeout_s: float = Field(
        30.0,
        gt=0,
        description="seconds that a request has to send its body (else 408) and get its answer (else 503)",
    )
    max_body_bytes: int = Field(
        4_194_304,
        ge=1024,
        description="largest request body, packed and unpacked; a larger one is refused with 413",
    )
    max_forecasts: int = Field(
        10_000,
        ge=1,
        description="most forecasts per request, windows x horizon; more are refused with 422",
    )
    cache_mb: float | None = Field(
        None,
        gt=0,
        description="MB of memory for the loaded models of a directory, in each replica; the least recently used "
        f"models are unloaded (unless given, {CACHE_MB}, or {CACHED_MODELS} files if they need more)",
    )
    require_api_key: bool = Field(False, description=f"refuse to start if {API_KEY_VARIABLE} is not set")
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        (), description="origins whose pages may send requests, separated by commas, or * (none unless given)"
    )
    access_log: bool = Field(False, description="write a log line per request")
    log_format: Literal["json", "text"] = Field("json", description="format of the replicas' log files")

    @model_validator(mode="after")
    def _replicas_fit(self) -> ServeOptions:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} is less than replicas={self.replicas}; raise or omit max_replicas"
            )
        return self


class RunOptions(ServeOptions):
    """Where it listens."""

    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 is every interface"
    )
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
