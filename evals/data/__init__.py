"""Datasets by name: where their records come from, and how they are checked."""
