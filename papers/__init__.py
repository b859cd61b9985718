"""Papers: their quoted numbers, their figures made again, and the verdicts."""
