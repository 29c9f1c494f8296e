"""The ledger's migrations: data of the package, run by `service.ledger.migrate`."""
