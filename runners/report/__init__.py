"""Gathers what `results.report` shows from a run's records and stages."""
