"""What a conversion did, for people and programs.

Exercise it: ``pytest tests/ms4_train/weights/convert/test_report.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ms4_train.weights.layouts.tables import Layout
from ms4_train.weights.writer import TOKENIZER_FILE


@dataclass(frozen=True)
class ConversionReport:
    """What was done.

    Attributes:
        folder: the result.
        source_layout: what was read.
        layout: what was written.
        files: names of the weight files.
        source_bytes: bytes of the source's tensors.
        target_bytes: bytes of the result's weight files.
        items: units of work in all: a piece each, or an expert's gate and up where they come to share a scale.
        items_written: those that this run carried out.
        restarted: why an earlier run's remains were not used; None where there were none, or they were.
        is_resumed: whether an earlier run's remains were used.
        saturated: our name of a piece -> values clipped at its kept scale.
        is_checked: whether the source's files were compared with its ``SHA256SUMS`` (by this run, or the one that it goes on from).
        has_sidecar: whether ``fp8_scales.json`` was written.
        companions: files that went along, by name.
        left_behind: files of the source that did not: model cards, programs, other copies of the weights.
        skipped: stored tensors of the source that hold no weights.
        seconds: of this run.
    """

    folder: Path
    source_layout: Layout
    layout: Layout
    files: tuple[str, ...]
    source_bytes: int
    target_bytes: int
    items: int
    items_written: int
    restarted: str | None
    is_resumed: bool
    is_checked: bool
    has_sidecar: bool
    companions: tuple[str, ...]
    left_behind: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: float
    saturated: dict[str, int] = field(default_factory=dict)

    @property
    def items_kept(self) -> int:
        """Items that an earlier run had written."""
        return self.items - self.items_written

    @property
    def worst(self) -> tuple[str, int] | None:
        """The piece with the most clipped values, and how many; None where nothing was clipped."""
        return max(self.saturated.items(), key=lambda entry: entry[1], default=None)

    def lines(self) -> list[str]:
        """A few lines of text."""
        count = len(self.files)
        size = f"{self.target_bytes:,} bytes in {count} file{'s' if count > 1 else ''}"
        lines = [f"{self.folder}: {self.source_layout} -> {self.layout}, {size}, {self.seconds:.1f} s"]
        if self.is_resumed:
            lines.append(f"went on from an earlier run: {self.items_kept:,} of {self.items:,} items were there")
        if self.restarted:
            lines.append(f"the remains of an earlier run were not used: {self.restarted}")
        if (warning := self.saturation_line()) is not None:
            lines.append(warning)
        if TOKENIZER_FILE not in self.companions:
            lines.append(f"no {TOKENIZER_FILE} came along: vLLM and ms4 want the release's own beside the weights; copy it there")
        if self.left_behind:
            lines.append("not copied: " + ", ".join(self.left_behind))
        return lines

    def saturation_line(self) -> str | None:
        """What was clipped, in a sentence; None where nothing was."""
        if self.worst is None:
            return None
        name, most = self.worst
        total = sum(self.saturated.values())
        return (
            f"{total:,} values in {len(self.saturated):,} matrices are larger than 448 times the kept scale and were clipped; "
            f"worst: {name} with {most:,}. Fitted weight scales clip nothing."
        )
