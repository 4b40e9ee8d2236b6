"""Checkpoints of every layout, opened strictly: found, checked, described, identified, and read into models."""
