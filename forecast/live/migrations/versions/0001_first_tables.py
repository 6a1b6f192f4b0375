"""The first tables: each is written out, since those of ``forecast.live.tables`` change with later versions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "forecasts",
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
        sa.UniqueConstraint("name", "target", "symbol", "horizon", "model"),
    )
    op.create_index("forecasts_by_symbol", "forecasts", ["symbol", "target"])
    op.create_table(
        "published",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("symbol", sa.Text, primary_key=True),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "prices",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("symbol", sa.Text, nullable=False),
        sa.Column("date", sa.Text, nullable=False),
        sa.Column("price", sa.Float, nullable=False),
        sa.Column("observed_at", sa.Text, nullable=False),
    )
    op.create_index("prices_by_date", "prices", ["name", "date", "symbol"])
    op.create_table(
        "rescalings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("symbol", sa.Text, nullable=False),
        sa.Column("factor", sa.Float, nullable=False),
        sa.Column("observed_at", sa.Text, nullable=False),
    )
    op.create_table(
        "scores",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("forecast_id", sa.Integer, sa.ForeignKey("forecasts.id"), nullable=False),
        sa.Column("price_id", sa.Integer, sa.ForeignKey("prices.id"), nullable=False),
        sa.Column("realized", sa.Float, nullable=False),
        sa.Column("crps", sa.Float, nullable=False),
        sa.Column("pit", sa.Float, nullable=False),
        sa.UniqueConstraint("forecast_id", "price_id"),
    )
    op.create_table(
        "sessions",
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
        sqlite_with_rowid=False,
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("version", sa.Text),
        sa.Column("session", sa.Text),
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_index("events_by_name", "events", ["name", "kind"])
    op.create_table(
        "requests",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("symbol", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("answer", sa.JSON, nullable=False),
    )
