"""What a run will need, before it starts: memory of each rank, host memory, disk."""

from ms4_train.planning.memory import MemoryPlan, host_warning, memory_warning, plan_memory
from ms4_train.planning.planned_model import Base, planned_model, read_base

__all__ = ["Base", "MemoryPlan", "host_warning", "memory_warning", "plan_memory", "planned_model", "read_base"]
