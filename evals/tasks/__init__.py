"""Target applications: their training data, their prompts and their benchmarks."""
