"""Model folders from and to a Hugging Face hub: pinned revisions, every file's size and sum checked, both ways.

Transfers are huggingface_hub's; what is added here is what it leaves to its caller: names are checked before anything is written, bytes
after they arrived, and a folder counts as complete only when ``SHA256SUMS`` is in it. Exercise it: ``pytest tests/ms4_train/weights/hub``.
"""

from ms4_train.weights.hub.pull import PullResult, pull
from ms4_train.weights.hub.push import PushResult, push

__all__ = ["PullResult", "PushResult", "pull", "push"]
