"""Stored samples of finished evaluations: comparing, rescoring, showing."""
