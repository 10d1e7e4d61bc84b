"""Closed forms of customers: how often they buy, whether they are alive, and what they spend."""
