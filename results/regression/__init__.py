"""Regression check: a run against a stored baseline, by recovery."""
