"""The server that this project replaces, as it was described: FastAPI, one process, one model in torch.

This is the fastest reading of the description: the handler runs on the event loop, because a thread pool would cost
more than the forecast, and the answer has the described fields. Prices are z-scored levels in both directions.

    python -m benchmarks.original_server CHECKPOINT PORT PROCESSES
"""

from __future__ import annotations

import os
import sys

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from forecast.model.checkpoint import load_checkpoint


class PredictRequest(BaseModel):
    values: list[float]


class PredictResponse(BaseModel):
    ok: bool
    prediction: float
    checkpoint_path: str
    sequence_length: int
    symbol: str
    feature: str


def build(path: str) -> FastAPI:
    # As fast as two threads for one process, and the only choice for two processes on two cores.
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(path)
    model = checkpoint.members[0].trained_network()
    config = checkpoint.config
    mean = float(checkpoint.normalization.feature.mean)
    std = float(checkpoint.normalization.feature.std)
    web = FastAPI()

    @web.get("/healthz")
    async def healthz() -> dict[str, bool]:
        return {"ok": True}

    @web.post("/predict", response_model=PredictResponse)
    async def predict(request: PredictRequest) -> PredictResponse:
        if len(request.values) < config.sequence_length:
            raise HTTPException(422, f"send {config.sequence_length} values")
        window = torch.tensor(request.values[-config.sequence_length :], dtype=torch.float32)
        with torch.no_grad():
            output = model(((window - mean) / std).reshape(1, -1, 1))
        return PredictResponse(
            ok=True,
            prediction=float(output.item()) * std + mean,
            checkpoint_path=path,
            sequence_length=config.sequence_length,
            symbol=config.symbol,
            feature=config.feature,
        )

    return web


def create() -> FastAPI:
    """Build the application in each of uvicorn's worker processes."""
    return build(os.environ["ORIGINAL_CHECKPOINT"])


if __name__ == "__main__":
    os.environ["ORIGINAL_CHECKPOINT"] = sys.argv[1]
    uvicorn.run(
        "benchmarks.original_server:create",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        workers=int(sys.argv[3]),
        log_level="warning",
        access_log=False,
    )
