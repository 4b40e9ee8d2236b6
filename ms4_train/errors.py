"""Every error that a user can cause, with the place and the fix in its message.

The command line prints ``str(error)`` on one line and exits with ``error.exit_code``; a traceback means a defect of ours.
Exercise it: ``pytest tests/ms4_train/test_errors.py``.
"""

from __future__ import annotations

from pathlib import Path


class MS4Error(Exception):
    """An error caused by input or by the machine, not by a defect of this program.

    Args:
        message: what is wrong, in one sentence.
        file: the file it is wrong in.
        line: 1-based line in ``file``.
        key: the configuration key, tensor name or field.
        fix: what the user can do about it.
    """

    exit_code = 2
    code = "error"
    on_all_ranks = False
    """Whether every rank of the run raises it at this point, by agreement; set on an object, not on a class."""

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        key: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.message = message
        self.file = str(file) if file is not None else None
        self.line = line
        self.key = key
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        place = self.file or ""
        if self.line is not None:
            place += f":{self.line}" if place else f"line {self.line}"
        parts = [part for part in (place, self.key, self.message) if part]
        text = ": ".join(parts)
        return f"{text} Fix: {self.fix}" if self.fix else text


class ConfigError(MS4Error):
    """A YAML file or a command-line override that cannot be used."""

    code = "config"


class UntrustedInputError(MS4Error):
    """Outside bytes that break a bound or a format: too large, too deep, malformed."""

    code = "input"


class ImageError(UntrustedInputError):
    """An image that cannot be used: not an image, damaged, or past a bound."""

    code = "image"


class ImageRefusedError(ImageError):
    """An image from a place that the settings do not allow: outside the root folder, on another host."""

    code = "image-refused"


class DataError(MS4Error):
    """A data set that cannot be read, or that holds nothing to train on."""

    code = "data"


class RowError(DataError):
    """One bad row. ``row_code`` is the stable name of the fault (``role-order``, ``empty-assistant`` ...)."""

    code = "row"

    def __init__(
        self,
        message: str,
        *,
        row_code: str,
        file: str | Path | None = None,
        line: int | None = None,
        key: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.row_code = row_code
        super().__init__(message, file=file, line=line, key=key, fix=fix)


class TokenizerError(MS4Error):
    """A tokenizer file that is missing, of another version, or that does not fit the model."""

    code = "tokenizer"


class WeightsError(MS4Error):
    """Model files with a missing, unexpected, misshapen or unreadable tensor or configuration."""

    code = "weights"


class AdapterError(MS4Error):
    """An adapter that matches nothing, is malformed, or belongs to another model."""

    code = "adapter"


class CheckpointError(MS4Error):
    """Run state that is incomplete, corrupt, or of another run."""

    code = "checkpoint"


class TrainingError(MS4Error):
    """A run that cannot start or go on: nothing to train, non-finite loss."""

    code = "training"


class NotFiniteError(TrainingError):
    """A loss or a gradient norm that is infinite or not a number; every rank raises it, before the optimizer step.

    ``value`` is the loss or the norm.
    """

    code = "not-finite"

    def __init__(self, message: str, *, value: float, fix: str | None = None) -> None:
        self.value = value
        self.on_all_ranks = True
        super().__init__(message, fix=fix)


class ParallelError(MS4Error):
    """A process mesh that does not fit the model or the machine."""

    code = "parallel"


class RankLostError(ParallelError):
    """Another rank of the run died, hangs, or ended with an error of its own."""

    code = "rank-lost"
    exit_code = 76


class EngineError(MS4Error):
    """A generation request that the engine cannot serve."""

    code = "engine"


class EvaluationError(MS4Error):
    """An evaluation task, store or grader that cannot be used."""

    code = "evaluation"


class StoppedError(EvaluationError):
    """An evaluation was asked to stop: what is finished is stored, the rest is done by the next start."""

    code = "stopped"


class MissingDependencyError(MS4Error):
    """A package or program that this command needs and that is not installed."""

    code = "dependency"


class StorageError(MS4Error):
    """A disk that is full or that cannot be written."""

    code = "storage"


class DiskFullError(StorageError):
    """A disk, quota or file size limit that is full."""

    code = "disk-full"
    exit_code = 75
