"""Event logs: reading, histories, splits and features."""
