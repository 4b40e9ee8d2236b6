"""The training loop, its loss, schedules and metrics."""

from ms4_train.training.announce import RunLength, TrainedParameters, announcement, ranks_said
from ms4_train.training.loop import TrainingRun, train
from ms4_train.training.metrics import FlopCounter, Speedometer, peak_flops
from ms4_train.training.schedule import steps_per_epoch, total_steps
from ms4_train.training.stop import StopSignals, TrainingInterruptedError

__all__ = [
    "FlopCounter",
    "RunLength",
    "Speedometer",
    "StopSignals",
    "TrainedParameters",
    "TrainingInterruptedError",
    "TrainingRun",
    "announcement",
    "peak_flops",
    "ranks_said",
    "steps_per_epoch",
    "total_steps",
    "train",
]
