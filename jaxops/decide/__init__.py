"""Decisions taken from forecasts and logs: order quantities, stock policies, offers."""
