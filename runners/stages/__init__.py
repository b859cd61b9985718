"""What each kind of stage does with its folder: one module a kind."""
