"""Where metrics go: console, metrics.jsonl, Weights & Biases; one interface."""

from ms4_train.tracking.base import Metrics, Tracker, Trackers
from ms4_train.tracking.factory import make_trackers

__all__ = ["Metrics", "Tracker", "Trackers", "make_trackers"]
