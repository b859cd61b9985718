"""Engines in processes of their own: choice, start, talk, crash, end."""
