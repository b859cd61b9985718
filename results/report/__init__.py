"""A run on one page: the question, what came out, what it cost, and what the compressed models look like."""
