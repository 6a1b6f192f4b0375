"""Inference with a checkpoint: engines, and the predictor."""
