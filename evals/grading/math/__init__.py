"""Comparing MATH answers: as text, by value, by algebra."""
