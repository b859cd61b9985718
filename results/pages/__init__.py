"""Self-contained HTML pages: one base for the leaderboard and the report. Text from records stays text."""
