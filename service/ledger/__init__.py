"""The ledger: everything paper trading must remember, in SQLite or PostgreSQL. See `schema.py` and `store.py`."""
