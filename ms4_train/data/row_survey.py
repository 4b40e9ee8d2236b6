"""What the rows of a run come to: counts, tokens, the share of tokens with loss, and every fault with its place.

Printed before the first step, so that a run whose mask covers nothing, or whose rows were dropped, is seen and refused.
``ms4_train.data.preparation`` fills these records. Exercise it: ``pytest tests/ms4_train/data/test_row_survey.py``.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ms4_train.chat import ChatRow
from ms4_train.data.mixture import describe_mixture
from ms4_train.data.pipeline import Outcome
from ms4_train.data.rows import OVERLONG, Fault
from ms4_train.errors import DataError
from ms4_train.storage import atomic_write_text

SHOWN_FAULTS = 20
"""Faults in an error message."""

KEPT_FAULTS = 20_000
"""Faults of one code that are remembered with their place; beyond that they are only counted."""

_TAG_SPELLINGS = ("[THINK]", "[/THINK]", "<think>", "</think>", "[TOOL_CALLS]", "[INST]", "</s>", "<tool_call>")


@dataclass
class SourceCounts:
    """Counts of one source. ``rows_read`` = kept + held out + overlong + bad."""

    path: str
    weight: float
    is_sample: bool = False
    """True for a streaming source: only its first rows were read."""
    rows_read: int = 0
    rows_kept: int = 0
    rows_held_out: int = 0
    rows_overlong: int = 0
    rows_bad: int = 0
    rows_high: int = 0
    """Kept or held-out rows in the mode ``high``."""
    rows_spelled_tags: int = 0
    """Rows whose assistant spells a control tag as ordinary text, which is rarely meant."""
    tokens: int = 0
    """Tokens of kept rows."""
    trained_tokens: int = 0
    longest: int = 0
    """Tokens of the longest row that was read and encoded."""
    images: int = 0
    """Images of kept rows."""
    image_tokens: int = 0
    """Tokens of kept rows that the vision tower fills."""
    image_patches: int = 0
    """Patches that the vision tower sees of the images of kept rows."""
    image_bytes: int = 0
    """Encoded bytes of the images of kept rows."""

    def add_kept(self, outcome: Outcome) -> None:
        """Count a row that is trained on."""
        self.rows_kept += 1
        if outcome.encoded is not None:
            self.tokens += len(outcome.encoded.token_ids)
            self.trained_tokens += sum(outcome.encoded.loss_mask[1:])
            self.images += len(outcome.images)
            self.image_tokens += outcome.image_cells
            self.image_patches += outcome.image_patches
            self.image_bytes += outcome.image_bytes

    def image_lines(self) -> list[str]:
        """What the images come to, for people; empty without images."""
        if not self.images:
            return []
        size = f"{self.image_bytes / 1e6:,.1f} MB encoded"
        return [f"images: {self.images:,}, of {self.image_tokens:,} image tokens and {self.image_patches:,} patches; {size}"]

    def add_row(self, row: ChatRow) -> None:
        """Count what a checked row says."""
        self.rows_high += row.reasoning_effort == "high"
        spelled = any(tag in message.text for message in row.messages if message.role == "assistant" for tag in _TAG_SPELLINGS)
        self.rows_spelled_tags += spelled


@dataclass
class Survey:
    """All sources of a run. Faults are in the order in which they were found."""

    sources: list[SourceCounts] = field(default_factory=list)
    validation: list[SourceCounts] = field(default_factory=list)
    """Counts of the validation sources; empty where validation rows are held out of the training sources."""
    faults: list[Fault] = field(default_factory=list)
    fault_counts: Counter[str] = field(default_factory=Counter)

    def add_fault(self, counts: SourceCounts, fault: Fault) -> None:
        """Record one unusable row."""
        if fault.code == OVERLONG:
            counts.rows_overlong += 1
        else:
            counts.rows_bad += 1
        self.fault_counts[fault.code] += 1
        if self.fault_counts[fault.code] <= KEPT_FAULTS:
            self.faults.append(fault)

    @property
    def rows_read(self) -> int:
        """Rows read from the training sources."""
        return sum(counts.rows_read for counts in self.sources)

    @property
    def rows_kept(self) -> int:
        """Rows that will be trained on."""
        return sum(counts.rows_kept for counts in self.sources)

    @property
    def rows_skipped(self) -> int:
        """Rows dropped as bad or overlong."""
        return sum(counts.rows_bad + counts.rows_overlong for counts in self.sources)

    @property
    def tokens(self) -> int:
        """Tokens of the kept rows, once each."""
        return sum(counts.tokens for counts in self.sources)

    @property
    def trained_tokens(self) -> int:
        """Tokens of the kept rows that carry loss."""
        return sum(counts.trained_tokens for counts in self.sources)

    @property
    def images(self) -> int:
        """Images of the kept rows."""
        return sum(counts.images for counts in self.sources)

    @property
    def trained_fraction(self) -> float:
        """Share of tokens that carry loss."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    def require_valid(self, *, invalid_rows: str, overlong_rows: str) -> None:
        """Refuse a run on faults that the configuration does not allow to be skipped.

        Raises:
            DataError: names the first faults with file, line and code.
        """
        refused = [fault for fault in self.faults if (overlong_rows if fault.code == OVERLONG else invalid_rows) == "error"]
        if not refused:
            return
        overlong = self.fault_counts[OVERLONG] if overlong_rows == "error" else 0
        bad = self.fault_counts.total() - self.fault_counts[OVERLONG] if invalid_rows == "error" else 0
        listed = "".join(f"\n  {fault}" for fault in refused[:SHOWN_FAULTS])
        more = f"\n  and {bad + overlong - SHOWN_FAULTS:,} more" if bad + overlong > SHOWN_FAULTS else ""
        keys = [key for key, count in (("data.invalid_rows: skip", bad), ("data.overlong_rows: skip", overlong)) if count]
        first_fix = refused[0].fix
        raise DataError(
            f"{bad + overlong:,} rows cannot be used:{listed}{more}\n",
            fix=f"{'in the first, ' + first_fix.rstrip('.') + ', or ' if first_fix else ''}set {' and '.join(keys)}; "
            "`ms4 data check` lists every bad row with its fix.",
        )

    def require_trainable(self) -> None:
        """Refuse a run that would train on nothing.

        Raises:
            DataError: no row is left, or no token carries loss.
        """
        if not self.rows_kept:
            raise DataError(
                f"none of the {self.rows_read:,} rows can be trained on.",
                key="data.train",
                fix="check the files, data.max_length and data.validation_fraction.",
            )
        if not self.trained_tokens:
            raise DataError(
                f"none of the {self.tokens:,} tokens carries loss.",
                key="data",
                fix="check that the rows hold assistant turns, and data.train_on_thinking; `ms4 data preview` shows the mask.",
            )

    def lines(self) -> list[str]:
        """The survey for people, one fact a line, without markup."""
        out: list[str] = []
        for counts in self.sources:
            sample = " (a sample; the source streams)" if counts.is_sample else ""
            skipped = counts.rows_bad + counts.rows_overlong
            rows = f"{counts.rows_read:,} rows read, {counts.rows_kept:,} kept, {counts.rows_held_out:,} held out, {skipped:,} skipped"
            mode = f"{counts.rows_high:,} in mode high" if counts.rows_high else "all in mode none"
            out.append(f"{counts.path}{sample}: {rows}; {mode}; longest {counts.longest:,} tokens")
            out += [f"  {line}" for line in counts.image_lines()]
            if counts.rows_spelled_tags:
                out.append(
                    f"  warning: rows that spell a control tag such as [THINK] or <think> as ordinary text: {counts.rows_spelled_tags:,}. "
                    "Put thinking into a thinking part or reasoning_content instead."
                )
        out += self._mixture_lines()
        for counts in self.validation:
            out.append(f"{counts.path} (validation): {counts.rows_read:,} rows read, {counts.rows_kept:,} kept")
        for code, count in sorted(self.fault_counts.items()):
            out.append(f"skipped as {code}: {count:,}")
        out.append(f"tokens: {self.tokens:,}, of which {self.trained_tokens:,} carry loss ({self.trained_fraction:.1%})")
        return out

    def _mixture_lines(self) -> list[str]:
        """What weights come to, where there is anything to say about it."""
        weights = [counts.weight for counts in self.sources]
        if len(weights) == 1 and (weights[0] == 1 or self.sources[0].is_sample):
            return []
        if any(counts.is_sample for counts in self.sources):
            total = sum(weights)
            return [f"{counts.path}: {counts.weight / total:.1%} of the rows drawn (weight {counts.weight:g})" for counts in self.sources]
        return describe_mixture([counts.path for counts in self.sources], [counts.rows_kept for counts in self.sources], weights)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able summary for logs, without the single faults."""
        return {
            "rows_read": self.rows_read,
            "rows_kept": self.rows_kept,
            "rows_skipped": self.rows_skipped,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "trained_fraction": self.trained_fraction,
            "images": self.images,
            "faults": dict(sorted(self.fault_counts.items())),
            "sources": [asdict(counts) for counts in self.sources],
            "validation": [asdict(counts) for counts in self.validation],
        }

    def write_faults(self, path: str | Path) -> None:
        """Write one JSON line per fault (source, number, code, message, key, fix), so that skipped rows can be found again.

        Raises:
            StorageError: the file cannot be written.
        """
        atomic_write_text(path, "".join(json.dumps(asdict(fault), ensure_ascii=False) + "\n" for fault in self.faults))
