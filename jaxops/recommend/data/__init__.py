"""From an event log to histories, splits and features."""
