"""LoRA on linear modules, embeddings, routers and stacked experts, and modules trained whole beside it, in PEFT's file format."""

from ms4_train.adapters.attach import AttachReport, TargetRow, adapter_tensors, attach, attach_report, detach
from ms4_train.adapters.files import load_adapter, save_adapter
from ms4_train.adapters.initialise import plain_adapter
from ms4_train.adapters.merge import MergeReport, merge, unmerge
from ms4_train.adapters.several import set_active_adapters

__all__ = [
    "AttachReport",
    "MergeReport",
    "TargetRow",
    "adapter_tensors",
    "attach",
    "attach_report",
    "detach",
    "load_adapter",
    "merge",
    "plain_adapter",
    "save_adapter",
    "set_active_adapters",
    "unmerge",
]
