"""Folders of finished stages: written whole, locked, checked, shared."""
