"""Statistics of graded samples: scores with their uncertainty, paired differences, pass@k, lengths."""
