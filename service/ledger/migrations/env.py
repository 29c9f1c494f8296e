"""What Alembic runs: the migrations, on the connection that `service.ledger.migrate` hands over.

The caller's transaction holds the write lock and makes the whole upgrade one step, so none is begun here.
"""

from alembic import context

from service.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes a column by rebuilding its table
)
context.run_migrations()
