"""What benchmarks of one kind share: generation, multiple choice, perplexity."""
