"""Scores of forecasts: metrics and forecast distributions."""
