"""The two LiveCodeBench graders: strict, and bug-compatible with the original."""
