"""Generated problems in the form of GSM8K and HumanEval that the built-in model can solve."""
