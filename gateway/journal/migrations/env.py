"""What Alembic runs: the steps, on the connection that `gateway.journal.schema.migrate` has opened."""

from alembic import context

from gateway.journal.rollup_tables import rollups

context.configure(connection=context.config.attributes["connection"], target_metadata=rollups.metadata)
context.run_migrations()
