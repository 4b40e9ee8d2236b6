"""A checkpoint's headers against the table of its layout: what is missing, unexpected, misshapen or of another type.

Exercise it: ``pytest tests/ms4_train/weights/reading/test_header_check.py``.

Not covered: values; and tensors that an index or two files disagree about (``stored_files``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ms4_train.errors import WeightsError
from ms4_train.weights.layouts.detect import CONFIG_FILES, Family
from ms4_train.weights.layouts.names import and_more, nearest
from ms4_train.weights.layouts.tables import HfNames, Kind, Layout, LayoutTable, TensorSpec
from ms4_train.weights.reading.evidence import is_extra, is_vision
from ms4_train.weights.reading.stored_files import StoredTensor

READABLE: Mapping[Kind, tuple[str, ...]] = {
    "values": ("BF16", "F16", "F32", "F64"),
    "fp8": ("F8_E4M3",),
    "fp4": ("U8",),
    "block scale": ("F8_E4M3",),
    "scalar": ("BF16", "F16", "F32"),
}
"""Types read for each kind of stored tensor, as safetensors spells them."""

_EXPERTS = re.compile(r"layers\.(\d+)\.(?:mlp\.)?experts\.")
_BELONGS = "check that the configuration belongs to these weights."
_AGAIN = "download the model again; its configuration must describe these weights."


@dataclass(frozen=True)
class Mismatch:
    """One disagreement.

    Attributes:
        kind: ``missing``, ``unexpected``, ``misshapen`` or ``mistyped``.
        name: of the tensor.
        describe: makes the error; a damaged checkpoint has tens of thousands, and few of them are shown.
    """

    kind: str
    name: str
    describe: Callable[[], WeightsError]

    @property
    def error(self) -> WeightsError:
        """The disagreement as an error, with file, tensor and fix."""
        return self.describe()


@dataclass(frozen=True)
class HeaderCheck:
    """The comparison of one checkpoint's headers with its table."""

    folder: Path
    family: Family
    table: LayoutTable
    stored: Mapping[str, StoredTensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @classmethod
    def compare(cls, folder: Path, family: Family, table: LayoutTable, stored: Mapping[str, StoredTensor]) -> HeaderCheck:
        """Compare names; shapes and types are compared by ``mismatches``.

        Activation scales may all be absent, as with dynamic activation quantisation; some of them may not.
        """
        specs = table.tensors()
        has_activation = any(spec.is_optional and name in stored for name, spec in specs.items())
        missing = tuple(name for name, spec in specs.items() if name not in stored and (has_activation or not spec.is_optional))
        unexpected = tuple(name for name in stored if name not in specs and not is_extra(name))
        return cls(folder, family, table, stored, missing, unexpected)

    @property
    def config_file(self) -> str:
        """Name of the configuration that the table came from."""
        return CONFIG_FILES[self.family]

    def mismatches(self) -> Iterator[Mismatch]:
        """Every disagreement: missing tensors, then unexpected ones, then shapes and types. The first of a kind counts the others."""
        for index, name in enumerate(self.missing):
            rest = self.missing if index == 0 else ()
            yield Mismatch("missing", name, functools.partial(self._missing_error, name, rest))
        for index, name in enumerate(self.unexpected):
            rest = self.unexpected if index == 0 else ()
            yield Mismatch("unexpected", name, functools.partial(self._unexpected_error, name, rest))
        for name, spec in self.table.tensors().items():
            stored = self.stored.get(name)
            if stored is None:
                continue
            if stored.info.dtype not in READABLE[spec.kind]:
                wanted = " or ".join(READABLE[spec.kind])
                what = f"has type {stored.info.dtype}; the {self.table.layout} layout has {wanted} here."
                yield Mismatch("mistyped", name, functools.partial(WeightsError, what, file=stored.file, key=name, fix=_BELONGS))
            if not fits(stored.info.shape, spec):
                what = f"has shape {list(stored.info.shape)}, but {self.config_file} says {list(spec.shape)}."
                yield Mismatch("misshapen", name, functools.partial(WeightsError, what, file=stored.file, key=name, fix=_BELONGS))

    def _missing_error(self, name: str, rest: tuple[str, ...]) -> WeightsError:
        more = and_more(rest)
        if self.table.config.vision is not None and is_vision(name) and not any(map(is_vision, self.stored)):
            what = f"{self.config_file} describes a vision tower, but the files hold none of its weights{more}."
        elif self.table.tensors()[name].kind in ("scalar", "block scale"):
            what = f"the scale is missing{more}; its matrix cannot be read without it."
        elif owned := [scale for scale in self._scales_of(name) if scale in self.stored]:
            what = f"the weight is missing, but its scale {owned[0]} is stored{more}."
        else:
            what = f"the weight is missing{more}.{self._partial_experts(name)}"
        hint = nearest(name, self.unexpected)
        if hint:
            what += f" Nearest unused name: {', '.join(hint)}."
        return WeightsError(what, file=self.folder, key=name, fix=_AGAIN)

    def _unexpected_error(self, name: str, rest: tuple[str, ...]) -> WeightsError:
        stored, more = self.stored[name], and_more(rest)
        twin = self._other_spelling(name)
        if twin is not None:
            what = f"is stored twice: also in {twin.file.name} as {twin.stored_name}{more}."
            return WeightsError(what, file=stored.file, key=name, fix="delete the one that does not belong to the model.")
        if is_vision(name) and self.table.config.vision is None:
            what = f"is a vision weight{more}, but {self.config_file} describes no vision tower."
            return WeightsError(what, file=stored.file, key=name, fix=_BELONGS)
        hint = nearest(name, self.missing or self.table.tensors())
        what = f"is not a weight of this model{more}." + (f" Nearest names: {', '.join(hint)}." if hint else "")
        return WeightsError(what, file=stored.file, key=name, fix=_BELONGS)

    def _scales_of(self, values: str) -> list[str]:
        stem = values.removesuffix(".weight").removesuffix(".weight_packed")
        return [name for name, spec in self.table.tensors().items() if spec.kind in ("scalar", "block scale") and name.startswith(stem)]

    def _partial_experts(self, name: str) -> str:
        """A sentence on how much of a layer's experts is there, where some of it is."""
        found = _EXPERTS.search(name)
        if found is None or self.table.layout.is_hf:
            return ""
        mine = [other for other in self.table.tensors() if f"layers.{found[1]}.experts." in other and "scale" not in other]
        lacking = sum(other not in self.stored for other in mine)
        return f" Of the {len(mine)} expert matrices of layer {found[1]}, {lacking} are missing." if lacking < len(mine) else ""

    def _other_spelling(self, name: str) -> StoredTensor | None:
        """The stored tensor that holds what an unexpected name means in another spelling or family."""
        here = self._other_spellings.get(name)
        return None if here is None else self.stored.get(here)

    @functools.cached_property
    def _other_spellings(self) -> dict[str, str]:
        """Name of a tensor in another spelling or family -> the name here of what it holds. Seconds of work for the large model."""
        found: dict[str, str] = {}
        for layout, hf_names in ((Layout.NATIVE, HfNames.TEXT), *((Layout.HF, prefix) for prefix in HfNames)):
            if (layout.is_hf, hf_names) == (self.table.layout.is_hf, self.table.hf_names):
                continue
            other = LayoutTable(layout, self.table.config, hf_names)
            for piece in other.pieces().values():
                found.setdefault(other.place(piece).values, self.table.place(piece).values)
        return found


def fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    """Whether a stored shape is the specified one; a single scale may be 0-d or [1]."""
    if spec.kind == "scalar" and spec.shape in ((), (1,)):
        return shape in ((), (1,))
    return shape == spec.shape
