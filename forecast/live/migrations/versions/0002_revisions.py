"""Forecasts that supersede others, the bars of published forecasts, and what the models of a name forecast."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

COLUMNS = "id, name, symbol, target, horizon, model, role, origin, last_price, prediction, quantiles, unit, issued_at"


def upgrade() -> None:
    """Change the tables. SQLite cannot change a constraint, so the forecasts are copied into a new table."""
    op.create_table(
        "subjects",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("details", sa.JSON, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "forecasts_0002",
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
    )
    op.execute(f"INSERT INTO forecasts_0002 ({COLUMNS}) SELECT {COLUMNS} FROM forecasts ORDER BY id")
    op.drop_table("forecasts")
    op.rename_table("forecasts_0002", "forecasts")
    op.create_index("forecasts_by_symbol", "forecasts", ["symbol", "target"])

    op.add_column("published", sa.Column("revision", sa.Integer, nullable=False, server_default="0"))
    op.add_column("published", sa.Column("last_price_id", sa.Integer, nullable=False, server_default="0"))
    op.add_column("published", sa.Column("timeline", sa.JSON))
    # Without a record of the prices that they were made from, published forecasts count as made from all of them.
    op.execute("UPDATE published SET last_price_id = (SELECT COALESCE(MAX(id), 0) FROM prices)")

    op.add_column("sessions", sa.Column("last_forecast_id", sa.Integer, nullable=False, server_default="0"))
    op.execute(
        "UPDATE sessions SET last_forecast_id = made.id FROM "
        "(SELECT name, target, horizon, model, MAX(id) AS id FROM forecasts GROUP BY 1, 2, 3, 4) AS made "
        "WHERE made.name = sessions.name AND made.target = sessions.target AND made.horizon = sessions.horizon "
        "AND made.model = sessions.model"
    )
