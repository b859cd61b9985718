"""Curves over the ratio, bytes or speed."""
