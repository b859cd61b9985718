"""Rank policies: how a parameter budget is shared among the matrices. One file a policy."""
