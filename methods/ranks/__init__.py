"""From a whole-model ratio to integer ranks: the budget, and the policies that share it."""
