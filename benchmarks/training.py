"""The cost of one epoch across the search space, on one thread like a trial: ``make bench``."""

from __future__ import annotations

import platform
import statistics
import time

import torch

from forecast import TrainConfig, load_series
from forecast.model.training import Trainer
from forecast.model.windows import prepare

SHAPES = [(20, 32, 1, 64), (60, 64, 2, 64), (60, 128, 2, 64), (120, 256, 4, 128)]
"""Window, hidden size, layers, batch: the cheapest corner, two middles, the most expensive corner."""
EPOCHS = 3


def main() -> None:
    """Print a table of median seconds per epoch, validation included, and windows trained per second."""
    torch.set_num_threads(1)
    series = load_series(source="snapshot")
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, one thread")
    print("| window | hidden | layers | batch | s / epoch | windows / s |")
    print("|---|---|---|---|---|---|")
    for window, hidden, layers, batch in SHAPES:
        config = TrainConfig(
            source="snapshot",
            sequence_length=window,
            hidden_size=hidden,
            num_layers=layers,
            batch_size=batch,
            max_epochs=EPOCHS + 1,
            device="cpu",
        )
        prepared = prepare(series, config)
        trainer = Trainer(prepared, config)
        trainer.advance(1)  # the first epoch also pays for the libraries' warm-up
        seconds = []
        for epoch in range(2, EPOCHS + 2):
            started = time.perf_counter()
            trainer.advance(epoch)
            seconds.append(time.perf_counter() - started)
        median = statistics.median(seconds)
        windows = len(prepared.split.targets("train", window))
        print(
            f"| {window} | {hidden} | {layers} | {batch} | {median:.2f} | {windows / median:,.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
