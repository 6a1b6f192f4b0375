"""Models in production: versions, the forecasts that they issued, and what came of these."""
