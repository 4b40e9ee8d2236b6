"""What a checkpoint folder holds and everything that is wrong with it, from its configuration, headers and scales.

Where ``open_checkpoint`` refuses at the first problem, this collects them all.
Exercise it: ``ms4 weights inspect FOLDER`` and ``pytest tests/ms4_train/weights/reading/test_summary.py``.

Not covered: the weights' values, but for the fingerprint's samples; and sums, which are only looked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ms4_train.errors import MS4Error
from ms4_train.model import TextConfig
from ms4_train.weights.checksums import SUMS_FILE
from ms4_train.weights.layouts.detect import CONFIG_FILES, Family, FamilyChoice, families_present, find_family
from ms4_train.weights.layouts.model_config import read_model_config
from ms4_train.weights.layouts.pieces import ModelConfig
from ms4_train.weights.layouts.tables import HfNames, Layout
from ms4_train.weights.reading.checkpoint import Checkpoint, check_declared, table_of
from ms4_train.weights.reading.evidence import is_extra, is_vision, weigh_evidence
from ms4_train.weights.reading.fingerprint import fingerprint, vision_fingerprint
from ms4_train.weights.reading.header_check import READABLE, HeaderCheck, Mismatch, fits
from ms4_train.weights.reading.scalars import read_scalars
from ms4_train.weights.reading.stored_files import OpenFiles, StoredTensor, locate
from ms4_train.weights.writer import TOKENIZER_FILE

MAX_OF_A_KIND = 20
"""Problems of one kind that are listed singly; the rest is counted."""


@dataclass
class TypeCount:
    """What of a checkpoint is stored in one type. ``parameters`` counts two for a byte of packed FP4."""

    tensors: int = 0
    parameters: int = 0
    num_bytes: int = 0


@dataclass
class Inspection:
    """A checkpoint in numbers, and its problems in words; plain values throughout, fit for JSON.

    Attributes:
        family: of the files described; None where the folder has none.
        families: all that the folder has.
        layout: None where the files do not show one that is read.
        names: prefix style of Hugging Face names.
        num_bytes: of all tensors found.
        types: safetensors' spelling -> counts.
        parameters: by the configuration, text and vision; 0 without one. Scales do not count.
        scales: scale scalars stored.
        active_parameters: that act on one token, embedding and head included.
        vision_tensors: stored.
        companions: names of the files beside weights, configuration and sums.
        skipped: stored tensors that hold no weight.
        fingerprint: of the text; None where there are problems.
        vision_fingerprint: None where there are problems, or no vision.
        problems: one sentence each, with file, tensor and fix.
    """

    folder: str
    family: Family | None = None
    families: tuple[Family, ...] = ()
    layout: Layout | None = None
    names: HfNames | None = None
    files: tuple[str, ...] = ()
    tensors: int = 0
    num_bytes: int = 0
    types: dict[str, TypeCount] = field(default_factory=dict)
    parameters: int = 0
    text_parameters: int = 0
    vision_parameters: int = 0
    scales: int = 0
    active_parameters: int = 0
    vision_tensors: int = 0
    config: ModelConfig | None = None
    softmax_scale: str | None = None
    has_config: bool = False
    has_tokenizer: bool = False
    has_sums: bool = False
    companions: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    fingerprint: str | None = None
    vision_fingerprint: str | None = None
    problems: list[str] = field(default_factory=list)

    def note(self, error: MS4Error) -> None:
        """Add a problem."""
        self.problems.append(str(error))

    def note_some(self, errors: Sequence[MS4Error] | Sequence[Mismatch], rest: str) -> None:
        """Add the first problems of a kind, and count the others in the words of ``rest``."""
        for error in errors[:MAX_OF_A_KIND]:
            self.note(error if isinstance(error, MS4Error) else error.error)
        if len(errors) > MAX_OF_A_KIND:
            self.problems.append(f"{len(errors) - MAX_OF_A_KIND:,} {rest}")


def active_parameters(config: TextConfig) -> int:
    """Parameters that act on one token, embedding and head included (6.633 billion for the release, spec section 1.3)."""
    per_expert = 3 * config.hidden_size * config.moe_intermediate_size
    idle = config.num_hidden_layers * (config.n_routed_experts - config.num_experts_per_tok) * per_expert
    return config.num_parameters() - idle


def inspect_checkpoint(folder: str | Path, *, family: FamilyChoice = "auto") -> Inspection:
    """Describe a checkpoint of any layout, whole or damaged; problems are collected, not raised."""
    folder = Path(folder)
    found = Inspection(str(folder))
    try:
        chosen = find_family(folder, family)
    except MS4Error as error:
        found.note(error)
        return found
    found.family, found.families = chosen, tuple(families_present(folder))
    _describe_folder(folder, chosen, found)
    try:
        found.config = read_model_config(folder, family=chosen)
    except MS4Error as error:
        found.note(error)
    else:
        _count_parameters(found.config, found)
    stored = locate(folder, chosen, found.note)
    found.skipped = tuple(name for name in stored if is_extra(name))
    found.files = tuple(sorted({item.file.name for item in stored.values()}))
    _count_types(stored, found)
    if stored:
        _check(folder, chosen, stored, found)
    return found


def _describe_folder(folder: Path, family: Family, found: Inspection) -> None:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    found.has_config, found.has_tokenizer, found.has_sums = (name in names for name in (CONFIG_FILES[family], TOKENIZER_FILE, SUMS_FILE))
    own = {*CONFIG_FILES.values(), SUMS_FILE}
    found.companions = tuple(name for name in names if name not in own and not name.endswith((".safetensors", ".safetensors.index.json")))


def _count_parameters(config: ModelConfig, found: Inspection) -> None:
    found.softmax_scale = config.text.softmax_scale
    found.parameters = config.num_parameters()
    found.text_parameters = config.text.num_parameters()
    found.vision_parameters = found.parameters - found.text_parameters
    found.active_parameters = active_parameters(config.text)


def _count_types(stored: Mapping[str, StoredTensor], found: Inspection) -> None:
    found.tensors = len(stored)
    found.num_bytes = sum(item.num_bytes for item in stored.values())
    found.vision_tensors = sum(is_vision(name) for name in stored)
    for name, item in stored.items():
        count = found.types.setdefault(item.info.dtype, TypeCount())
        count.tensors += 1
        count.num_bytes += item.num_bytes
        count.parameters += math.prod(item.info.shape) * (2 if name.endswith(".weight_packed") else 1)
    found.types = dict(sorted(found.types.items(), key=lambda entry: -entry[1].num_bytes))


def _check(folder: Path, family: Family, stored: dict[str, StoredTensor], found: Inspection) -> None:
    try:
        evidence = weigh_evidence(stored, family)
    except MS4Error as error:
        found.note(error)
        return
    found.layout = evidence.layout(family)
    found.names = evidence.hf_names if family == "hf" else None
    if found.config is None:
        return
    try:
        check_declared(folder, family, evidence, stored)
    except MS4Error as error:
        found.note(error)
    table = table_of(found.config, family, evidence, stored)
    mismatches: dict[str, list[Mismatch]] = {}
    for mismatch in HeaderCheck.compare(folder, family, table, stored).mismatches():
        mismatches.setdefault(mismatch.kind, []).append(mismatch)
    for kind, group in mismatches.items():
        found.note_some(group, f"more tensors are {kind}.")
    files = OpenFiles()
    scalars = []
    for name, spec in table.tensors().items():
        item = stored.get(name)
        if spec.kind == "scalar" and item is not None and item.info.dtype in READABLE["scalar"] and fits(item.info.shape, spec):
            scalars.append(item)
    bad: list[MS4Error] = []
    values = read_scalars(files, scalars, bad.append)
    found.note_some(bad, "more scales are no positive numbers.")
    found.scales = sum(scale.numel() for scale in values.values())
    if not found.problems:
        checkpoint = Checkpoint(folder, family, table, stored, found.skipped, values, files)
        try:
            found.fingerprint = fingerprint(checkpoint)
            found.vision_fingerprint = vision_fingerprint(checkpoint)
        except MS4Error as error:
            found.note(error)
