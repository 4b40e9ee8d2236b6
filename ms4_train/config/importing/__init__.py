"""Run files of other programs, translated into ours. ``ms4 config import-axolotl`` prints a translation and what became of every key.

Exercise it: ``pytest tests/ms4_train/config/importing``.
"""
