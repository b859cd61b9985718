"""How fast checkpoints load and decode, as records and as a table."""
