"""The smallest model that still works: a search over ratios and methods."""
