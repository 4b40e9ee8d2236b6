"""The leaderboard: stores in, a table, a plot and a page out."""
