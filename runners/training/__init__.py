"""One training run: recipe, data, trainer, resuming, several processes."""
