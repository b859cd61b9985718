"""The built-in tasks, one file each: `evals/tasks/library/toy_math.py` holds the task `toy-math` as `TASK`."""
