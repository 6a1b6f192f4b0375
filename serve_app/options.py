"""Every option of the serving application, given as ``name=value`` to ``serve run``."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_CHECKPOINT = "artifacts/best_pareto_lstm.pt"
CHECKPOINT_VARIABLE = "FORECAST_CHECKPOINT"


class ServeOptions(BaseModel):
    """Options of the application; an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = Field(
        default_factory=lambda: os.environ.get(CHECKPOINT_VARIABLE, DEFAULT_CHECKPOINT),
        min_length=1,
        description=f"checkpoint to serve (unless given, {CHECKPOINT_VARIABLE} or {DEFAULT_CHECKPOINT})",
    )
    replicas: int = Field(1, ge=1, description="processes that answer requests")
    num_cpus: float = Field(1.0, ge=0, description="CPUs each replica asks for")
    num_gpus: float | None = Field(
        None,
        ge=0,
        description="GPU share each replica asks for (unless given, a quarter where the cluster has GPUs, else "
        "none)",
    )
    max_ongoing_requests: int = Field(64, ge=1, description="requests a replica works on at a time")
    max_queued_requests: int = Field(256, ge=1, description="requests that wait; more are refused with 503")
    max_body_bytes: int = Field(
        1_048_576, ge=1024, description="largest request body; larger is refused with 413"
    )
