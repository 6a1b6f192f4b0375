"""Models in production: their versions, their issued forecasts, and the scores of these forecasts."""
