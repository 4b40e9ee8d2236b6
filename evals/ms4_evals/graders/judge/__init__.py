"""Grading by a language model that compares an answer with the official one, and auditing that judge."""
