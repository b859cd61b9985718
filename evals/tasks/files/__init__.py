"""Task files: a user's own data, prompt and benchmarks, in one YAML file."""
