"""Training programs: one readable file each, top to bottom."""
