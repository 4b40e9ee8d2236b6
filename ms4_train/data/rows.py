"""The records that rows become on their way to the loader: outside row, fault, document.

Legend of shape suffixes: t = tokens of one document. Exercise it: ``pytest tests/ms4_train/data/test_rows.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ms4_train.errors import MS4Error, RowError, UntrustedInputError
from ms4_train.untrusted import EncodedImage

OVERLONG = "overlong"
"""Fault code of a row with more than ``data.max_length`` tokens; ``data.overlong_rows`` decides about it."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in its source."""

    source: str
    number: int
    """1-based: the line of a text file, the position in any other source."""
    value: Any
    """The row, or the ``UntrustedInputError`` of a line that cannot be parsed."""

    @property
    def row_id(self) -> str:
        """Source and number, as messages show it."""
        return f"{self.source}:{self.number}"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row cannot be used, with its place."""

    source: str
    number: int
    code: str
    message: str
    key: str | None = None
    fix: str | None = None

    @classmethod
    def from_error(cls, raw: RawRow, error: MS4Error) -> Fault:
        """The fault of ``raw`` that ``error`` describes."""
        code = error.row_code if isinstance(error, RowError) else "bad-json" if isinstance(error, UntrustedInputError) else error.code
        return cls(raw.source, raw.number, code, error.message, error.key, error.fix)

    def to_error(self) -> RowError:
        """The error that stops a run at this row."""
        return RowError(self.message, row_code=self.code, file=self.source, line=self.number, key=self.key, fix=self.fix)

    def __str__(self) -> str:
        place = f"{self.source}:{self.number}: {self.code}"
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


@dataclass(frozen=True)
class Document:
    """An encoded conversation, ready to be packed."""

    row_id: str
    token_ids_t: NDArray[np.int32]
    loss_mask_t: NDArray[np.bool_]
    place: tuple[int, int] | None = None
    """Source and index in the prepared rows; None for a document of a stream."""
    images: tuple[EncodedImage, ...] = ()
    """In the order of their tokens, as they are stored: never decoded."""
    image_digests: tuple[str, ...] = ()
    """Identity of each image's bytes where they were read before the run; empty where they were not."""

    def __len__(self) -> int:
        return len(self.token_ids_t)

    @cached_property
    def num_trained(self) -> int:
        """Tokens that carry loss. The first token has nothing before it to be predicted from, so it never does."""
        return int(np.count_nonzero(self.loss_mask_t[1:]))

    def error(self, message: str, code: str, fix: str | None) -> RowError:
        """An error at the row that the document came from."""
        source, _, number = self.row_id.rpartition(":")
        return RowError(message, row_code=code, file=source, line=int(number), fix=fix)
