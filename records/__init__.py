"""The tidy schema of results, its metrics, intervals and files; plain data that every layer above speaks."""
