"""Runs the migrations of the ledger in the transaction that ``forecast.live.ledger`` began."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
