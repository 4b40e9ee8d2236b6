"""The results store: every sample of every run, in one SQLite file that survives being killed."""
