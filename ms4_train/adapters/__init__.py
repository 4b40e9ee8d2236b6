"""LoRA on linear modules and on stacked experts, in PEFT's file format."""

from ms4_train.adapters.attach import AttachReport, TargetRow, adapter_tensors, attach, attach_report
from ms4_train.adapters.files import load_adapter, save_adapter
from ms4_train.adapters.merge import merge

__all__ = ["AttachReport", "TargetRow", "adapter_tensors", "attach", "attach_report", "load_adapter", "merge", "save_adapter"]
