"""What a forecast is worth: metrics and forecast distributions."""
