"""Weights in 8 or 4 bits: rounding to the nearest integer, packed files, and what they take."""
