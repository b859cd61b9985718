"""Experiment trackers: curves of trainings through transformers' integrations, and the cells of a sweep."""
