"""The serving application: ``serve run serve_app:app``.

``app`` is a builder: ``serve run serve_app:app checkpoint=model.pt replicas=2`` passes it its options, the
fields of ``serve_app.options.ServeOptions``.
"""

from serve_app.flags import set_serve_flags

# Before anything imports ray.serve, which reads them on import.
set_serve_flags()

from serve_app.deployment import app  # noqa: E402

__all__ = ["app"]
