"""Tasks: where problems come from, how they are asked, and how answers are graded."""
