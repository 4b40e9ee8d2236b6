"""One source's way from an outside row to a document: field mapping, defaults, checks, tokens, loss mask.

Exercise it: ``pytest tests/ms4_train/data/test_pipeline.py``.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ms4_train.chat import ChatRow, ChatTokenizer, EncodedRow, load_system_prompt, read_row, render_system_prompt
from ms4_train.chat.images import image_tokens
from ms4_train.chat.system_prompt import placeholders
from ms4_train.config.schema import DataSection, DatasetSource, ImagesSection
from ms4_train.data.rows import OVERLONG, Document, Fault, RawRow
from ms4_train.data.sources import is_local_file
from ms4_train.errors import DataError, RowError, UntrustedInputError
from ms4_train.untrusted import EncodedImage, ImageLimits, ImageReader

ORACLE_FIRST_ROWS = 16
ORACLE_EVERY_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row: checked, and (where a tokenizer is given) encoded; or a fault."""

    row: ChatRow | None = None
    encoded: EncodedRow | None = None
    fault: Fault | None = None
    image_digests: tuple[str, ...] = ()
    """Of ``images``, where they were read."""
    image_bytes: int = 0
    """Encoded bytes of ``images``, where they were read."""
    image_cells: int = 0
    """Image tokens that the vision tower fills."""
    image_patches: int = 0
    """Patches that the vision tower sees."""

    @property
    def images(self) -> tuple[EncodedImage, ...]:
        """The row's images in the order of their tokens."""
        return () if self.encoded is None else self.encoded.images


class RowPipeline:
    """Checks and encodes the rows of one source.

    Args:
        source: where the rows come from, with its field names and defaults.
        section: what carries loss, how long a row may be, and what the placeholders of a system prompt become.
        tokenizer: None checks the form of rows only.

    Raises:
        DataError: the source's system prompt cannot be used.
    """

    def __init__(self, source: DatasetSource, section: DataSection, tokenizer: ChatTokenizer | None) -> None:
        self.source = source
        self._section = section
        self._tokenizer = tokenizer
        self._system_prompt = _system_prompt_of(source, section)
        self._image_reader = image_reader(source, section.images)
        self._encoded_rows = 0

    def process(self, raw: RawRow) -> Outcome:
        """Check and encode one row. Never raises for a bad row: that is a fault in the outcome."""
        if isinstance(raw.value, UntrustedInputError):
            return Outcome(fault=Fault.from_error(raw, raw.value))
        try:
            row = read_row(self._mapped(raw.value), default_effort=self.source.reasoning_effort or "none", images=self._image_reader)
            if self._tokenizer is None:
                return Outcome(row=row)
            encoded = self._tokenizer.encode_row(
                row, train_on_thinking=self._section.train_on_thinking, train_on_turns=self._section.train_on_turns
            )
            self._check_with_oracle(row, encoded)
        except RowError as error:
            return Outcome(fault=Fault.from_error(raw, error))
        if len(encoded.token_ids) > self._section.max_length:
            return Outcome(row=row, encoded=encoded, fault=_overlong_fault(raw, len(encoded.token_ids), self._section.max_length))
        spec = self._tokenizer.image_spec
        grids = [image_tokens(image.width, image.height, spec) for image in encoded.images] if spec else []
        cells = sum(grid.cells for grid in grids)
        return Outcome(row=row, encoded=encoded, image_cells=cells, image_patches=cells * spec.merge**2 if spec else 0)

    def _mapped(self, value: Any) -> Any:
        """The row under our field names, with the source's system prompt."""
        if not isinstance(value, Mapping):
            return value
        fields = self.source.fields
        if fields.messages not in value:
            columns = ", ".join(ascii(key) for key in list(value)[:12])
            raise RowError(
                f"has no field {fields.messages} (it has: {columns or 'none'}).",
                row_code="no-messages",
                fix="name the column with the messages in fields.messages of this source.",
            )
        messages = value[fields.messages]
        prompt = value.get(fields.system_prompt) if fields.system_prompt is not None else None
        if prompt is None and self._system_prompt is not None and not _begins_with_system(messages):
            prompt = self._system_prompt
        if prompt is not None and isinstance(messages, list):
            messages = [{"role": "system", "content": prompt}, *messages]
        return {
            "messages": messages,
            "tools": value.get(fields.tools),
            "reasoning_effort": value.get(fields.reasoning_effort),
            "images": value.get(fields.images),
        }

    def _check_with_oracle(self, row: ChatRow, encoded: EncodedRow) -> None:
        """Compare our encoding with mistral-common's on a sample of rows.

        A difference is a defect of ours (or an unknown version of mistral-common), never the user's; training on it would be silent damage.
        """
        if self._encoded_rows < ORACLE_FIRST_ROWS or self._encoded_rows % ORACLE_EVERY_ROWS == 0:
            assert self._tokenizer is not None
            # Images are for the workers to decode, within their time.
            expected = self._tokenizer.encode_with_mistral_common(row, decode=False)
            assert encoded.token_ids == expected, "our encoding of a row differs from mistral-common's"
        self._encoded_rows += 1


def image_reader(source: DatasetSource, section: ImagesSection) -> ImageReader:
    """Where the images of a source may come from: files start at the folder of its own file, and may not leave it."""
    root = Path(section.root) if section.root is not None else Path(source.path).parent if is_local_file(source) else None
    limits = ImageLimits(section.max_bytes, section.max_pixels, section.max_side)
    return ImageReader(root, limits, tuple(section.allowed_hosts), timeout_s=section.decode_seconds)


def to_document(raw: RawRow, encoded: EncodedRow, image_digests: tuple[str, ...] = ()) -> Document:
    """The compact form of an encoded row."""
    tokens_t, mask_t = np.array(encoded.token_ids, dtype=np.int32), np.array(encoded.loss_mask, dtype=np.bool_)
    return Document(raw.row_id, tokens_t, mask_t, images=encoded.images, image_digests=image_digests)


def _begins_with_system(messages: Any) -> bool:
    return isinstance(messages, list) and bool(messages) and isinstance(messages[0], Mapping) and messages[0].get("role") == "system"


def _overlong_fault(raw: RawRow, length: int, max_length: int) -> Fault:
    return Fault(
        raw.source,
        raw.number,
        OVERLONG,
        f"{length:,} tokens, but data.max_length is {max_length:,}.",
        fix="raise data.max_length, shorten the row, or set data.overlong_rows: skip.",
    )


def _system_prompt_of(source: DatasetSource, section: DataSection) -> str | None:
    """The source's system prompt with its placeholders filled; the date is the run's own, so that it can be repeated on another day."""
    if source.system_prompt is None:
        return None
    text = load_system_prompt(source.system_prompt)
    if section.system_prompt_date is None:
        if placeholders(text) & {"today", "yesterday"}:
            raise DataError(
                f"the system prompt of {source.path} names a date, and the run has none.",
                key="data.system_prompt_date",
                fix="set it, e.g. to 2026-01-31.",
            )
        return render_system_prompt(text, name=section.system_prompt_name, today=datetime.date.min)
    try:
        today = datetime.date.fromisoformat(section.system_prompt_date)
    except ValueError:
        raise DataError(f"{section.system_prompt_date} is no date.", key="data.system_prompt_date", fix="write 2026-01-31.") from None
    return render_system_prompt(text, name=section.system_prompt_name, today=today)
