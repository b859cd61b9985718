"""What methods read from data: statistics of layers, in memory or one decoder block at a time."""
