"""How fast a checkpoint is and how much memory it takes, measured in a process of its own."""
