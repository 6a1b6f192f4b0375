"""The serving application: ``serve run serve_app:app``.

``app`` is a builder: ``serve run serve_app:app checkpoint=model.pt replicas=2`` passes it options, the fields of
``serve_app.options.ServeOptions``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serve_app.flags import set_serve_flags

if TYPE_CHECKING:
    from serve_app.deployment import app

# Must run before anything imports ray.serve, which reads the flags on import.
set_serve_flags()

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    """Import the application on first access: ``--help`` and HAProxy's start must not wait for torch."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from serve_app.deployment import app

    return app
