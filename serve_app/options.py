"""Every option of the serving application: ``name=value`` of ``serve run``, or ``args`` in a Serve config."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from forecast.inference.engines import EngineName
from forecast.names import split_names

DEFAULT_CHECKPOINT = "artifacts/best_pareto_lstm.pt"
CHECKPOINT_VARIABLE = "FORECAST_CHECKPOINT"
DEFAULT_APP = "default"
"""What Serve calls an application that ``serve run`` is given no name for."""
API_KEY_VARIABLE = "FORECAST_API_KEY"
"""Not an option: command lines and config files are read by others than their owner."""


class ServeOptions(BaseModel):
    """Options of the application; an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = Field(
        default_factory=lambda: os.environ.get(CHECKPOINT_VARIABLE, DEFAULT_CHECKPOINT),
        min_length=1,
        description="checkpoint to serve, or a directory with one a symbol (unless given, "
        f"{CHECKPOINT_VARIABLE} or {DEFAULT_CHECKPOINT})",
    )
    replicas: int = Field(1, ge=1, description="processes that answer requests")
    max_replicas: int | None = Field(
        None, ge=1, description="as many come up under load, and leave after it (unless given, replicas stay)"
    )
    target_ongoing_requests: float = Field(
        16.0, gt=0, description="requests under way in each replica that autoscaling aims at"
    )
    num_cpus: float = Field(1.0, ge=0, description="CPUs each replica asks for")
    num_gpus: float | None = Field(
        None,
        ge=0,
        description="GPU share each replica asks for (unless given, a quarter where the cluster has GPUs, else "
        "none)",
    )
    engine: EngineName = Field(
        "auto",
        description="what runs the network: onnx (ONNX Runtime, CPU only), torch, or auto: onnx on a CPU where it "
        "agrees with torch",
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        description="most windows a network runs at a time (unless given, 16 on a CPU, 256 on a GPU)",
    )
    batch_wait_ms: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="milliseconds a window waits for others (unless given, 0 on a CPU, 2 on a GPU)",
    )
    max_queued_requests: int = Field(
        256, ge=1, description="requests under way in each replica; one more is refused with 503"
    )
    request_timeout_s: float = Field(
        30.0, gt=0, description="seconds a request has: for its body, else 408, and for its answer, else 503"
    )
    max_body_bytes: int = Field(
        1_048_576, ge=1024, description="largest request body; larger is refused with 413"
    )
    max_forecasts: int = Field(
        10_000,
        ge=1,
        description="most windows x horizon of one request (x 500 futures where levels go with a horizon); more is "
        "refused with 422",
    )
    require_api_key: bool = Field(False, description=f"refuse to start where {API_KEY_VARIABLE} is not set")
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        (), description="origins whose pages may ask, separated by commas, or * (none unless given)"
    )
    access_log: bool = Field(False, description="a log line a request")
    log_format: Literal["json", "text"] = Field("json", description="form of the replicas' log files")

    @model_validator(mode="after")
    def _replicas_fit(self) -> ServeOptions:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} is less than replicas={self.replicas}; raise it or leave it out"
            )
        return self


class RunOptions(ServeOptions):
    """Where it listens."""

    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 is every interface"
    )
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
