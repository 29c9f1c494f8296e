"""The paper trader: one decision for every closed bar, through crashes, outages and bad data."""
