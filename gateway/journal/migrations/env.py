"""What Alembic runs: the steps, on the connection that `gateway.journal.schema.migrate` has opened."""

from alembic import context

from gateway.journal.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
