"""From a clean series to a checkpoint: split, normalization, windows, network, training."""
