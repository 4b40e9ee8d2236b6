"""Evaluation in both reasoning modes: tasks, graders, clients, a store that survives being killed, statistics, a leaderboard.

Importing this package costs nothing; the parts that need torch, matplotlib or math-verify import them where they are used.
Exercise it: ``pytest tests/evals``, or ``ms4 eval run configs/eval/arithmetic.yaml``.
"""
