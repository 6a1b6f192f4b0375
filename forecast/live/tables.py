"""The tables of the ledger; ``migrations`` creates and changes them.

Rows of ``subjects``, ``forecasts``, ``prices``, ``rescalings``, ``scores``, ``events`` and ``requests`` are facts: they
are added and never changed. ``published`` and ``sessions`` are derived from these facts, so that the latest forecasts
and a record of years can be read quickly.
"""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()

SUBJECTS = sa.Table(
    "subjects",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("details", sa.JSON, nullable=False),
    sqlite_with_rowid=False,
)
"""What the models of a name forecast: see ``forecast.live.subject``."""

FORECASTS = sa.Table(
    "forecasts",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("symbol", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("horizon", sa.Integer, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("last_price", sa.Float, nullable=False),
    sa.Column("prediction", sa.Float, nullable=False),
    sa.Column("quantiles", sa.LargeBinary, nullable=False),
    sa.Column("unit", sa.Float, nullable=False),
    sa.Column("issued_at", sa.Text, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False, server_default="0"),
    sa.UniqueConstraint("name", "target", "symbol", "horizon", "model", "revision"),
    sa.Index("forecasts_by_symbol", "symbol", "target"),
)
"""Every issued forecast, once. ``revision`` counts the sets of forecasts that a model issued from one origin: a later
set, from corrected prices, supersedes the earlier ones, which stay."""

PUBLISHED = sa.Table(
    "published",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("symbol", sa.Text, primary_key=True),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False, server_default="0"),
    sa.Column("last_price_id", sa.Integer, nullable=False, server_default="0"),
    sa.Column("timeline", sa.JSON),
    sqlite_with_rowid=False,
)
"""For each name and symbol, the origin, the model and the revision of the last published forecasts; the last price that
was recorded before they were made; and the symbol's bars and calendar (``Timeline.described``; null if unknown)."""

PRICES = sa.Table(
    "prices",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("symbol", sa.Text, nullable=False),
    sa.Column("date", sa.Text, nullable=False),
    sa.Column("price", sa.Float, nullable=False),
    sa.Column("observed_at", sa.Text, nullable=False),
    sa.Index("prices_by_date", "name", "date", "symbol"),
)
"""Every recorded price; a corrected price has several rows."""

RESCALINGS = sa.Table(
    "rescalings",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("symbol", sa.Text, nullable=False),
    sa.Column("factor", sa.Float, nullable=False),
    sa.Column("observed_at", sa.Text, nullable=False),
)
"""Changes of the unit of all prices of a symbol, as after a split."""

SCORES = sa.Table(
    "scores",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("forecast_id", sa.ForeignKey("forecasts.id"), nullable=False),
    sa.Column("price_id", sa.ForeignKey("prices.id"), nullable=False),
    sa.Column("realized", sa.Float, nullable=False),
    sa.Column("crps", sa.Float, nullable=False),
    sa.Column("pit", sa.Float, nullable=False),
    sa.UniqueConstraint("forecast_id", "price_id"),
)
"""The scores of a forecast on a price; the scores on the latest recorded price count."""

SESSIONS = sa.Table(
    "sessions",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("target", sa.Text, primary_key=True),
    sa.Column("horizon", sa.Integer, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("symbols", sa.Integer, nullable=False),
    sa.Column("crps", sa.Float, nullable=False),
    sa.Column("absolute_error", sa.Float, nullable=False),
    sa.Column("inside_50", sa.Integer, nullable=False),
    sa.Column("inside_90", sa.Integer, nullable=False),
    sa.Column("evidence", sa.JSON),
    sa.Column("last_forecast_id", sa.Integer, nullable=False, server_default="0"),
    sqlite_with_rowid=False,
)
"""Scores of one model on one session: means over symbols, in each forecast's unit, and counts. Of several champions of
one session, as after a promotion by hand, the one with the last forecast is the published one."""

EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("version", sa.Text),
    sa.Column("session", sa.Text),
    sa.Column("details", sa.JSON, nullable=False),
    sa.Index("events_by_name", "name", "kind"),
)
"""The events of models: versions added, judged, promoted and rolled back, servers reloaded, and alarms."""

REQUESTS = sa.Table(
    "requests",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Text, nullable=False),
    sa.Column("symbol", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("answer", sa.JSON, nullable=False),
)
"""A sample of the requests that a server answered."""
