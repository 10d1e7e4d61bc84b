"""From a table of series to windows, calendars and scales."""
