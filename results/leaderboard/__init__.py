"""The leaderboard: who is best under equal conditions, and who is not shown to be worse."""
