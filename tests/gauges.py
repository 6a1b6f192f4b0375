"""Metrics that a test can read."""


def recorded_gauges(monkeypatch):
    """Put recorders in the place of Ray's metrics; the result maps a gauge's name and labels to its value."""
    shown = {}

    class Gauge:
        def __init__(self, name, *_, **__):
            self.name = name

        def set(self, value, tags=None):
            shown[self.name, *(tags or {}).values()] = value

        def inc(self, value, tags=None):
            self.set(shown.get((self.name, *(tags or {}).values()), 0) + value, tags)

    for kind in ("Gauge", "Counter", "Histogram"):
        monkeypatch.setattr(f"serve_app.metrics.metrics.{kind}", Gauge)
    return shown
