"""The decision service: a checkpoint behind a REST API."""
