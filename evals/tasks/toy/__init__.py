"""Generated stand-ins for GSM8K and HumanEval that the built-in model can solve."""
