"""One training stage over several processes, started by accelerate."""
