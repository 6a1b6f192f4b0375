"""A checkpoint that answers: engines, predictor, simulated futures."""
