"""Graders: from the final answer of a sample to a verdict."""
