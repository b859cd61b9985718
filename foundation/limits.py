"""Largest numbers that the libraries below us take; beyond them they end in errors of their own."""

MAX_COUNT = 2**31 - 1
"""Steps, examples or tokens."""
MAX_SEED = 2**32 - 1
"""A seed of NumPy and transformers."""
MAX_LEARNING_RATE = 1e36
"""From about 3e37 on torch's AdamW ends in an overflow; below it a training diverges, which is reported."""
