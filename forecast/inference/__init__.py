"""Inference with a checkpoint: engines, predictor, simulated futures."""
