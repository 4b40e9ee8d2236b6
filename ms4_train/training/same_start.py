"""What all ranks of a run must have alike before the first step: programs, configuration, model, rows. Whoever differs is named.

On several machines each is started by a command of its own and reads files of its own. A rank with another learning rate or other rows
would train along without an error, and what comes out is neither run.
Exercise it: ``pytest tests/ms4_train/training/test_same_start.py``.

Not covered: rows of a source that streams, which nobody has read yet; and of weights all values but the samples of the fingerprint.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from ms4_train.adapters.stored import WEIGHTS_FILE
from ms4_train.checkpoint.identity import differing_keys
from ms4_train.checkpoint.save import versions
from ms4_train.config.section import Section
from ms4_train.data import PreparedData, TrainLoader
from ms4_train.parallel import Mesh
from ms4_train.parallel.alike import differing, require_alike
from ms4_train.training.announce import RunLength

_LOG = logging.getLogger(__name__)
_SAME_FILES = "give every machine the same files."


def require_same_start(mesh: Mesh, config: Section) -> None:
    """Refuse ranks whose programs or whose resolved configurations differ; another Python is warned of. Collective.

    One process, and one that rehearses alone, does nothing.

    Args:
        mesh: of the ranks.
        config: of the run, with all defaults and overrides.

    Raises:
        ParallelError: names keys, values, ranks and machines.
    """
    if mesh.expert_parallel_group is None:
        return
    packages = versions()
    python = {"python": packages.pop("python")}
    require_alike(mesh, packages, fix="install the same versions on every machine.")
    for key, text in differing(mesh, python).items():
        if mesh.is_main:
            _LOG.warning("%s differs between ranks: %s.", key, text)
    require_alike(mesh, config.model_dump(mode="json"), compare=differing_keys, fix="start every rank with the same file and overrides.")


def require_same_inputs(
    mesh: Mesh,
    *,
    base_fingerprint: str,
    tokenizer_sha256: str,
    rows: PreparedData,
    loader: TrainLoader,
    length: RunLength,
    init_from: str | None,
) -> None:
    """Refuse ranks that read another model, tokenizer, adapter or other rows than the others. Collective.

    One process, and one that rehearses alone, does nothing.

    Args:
        mesh: of the ranks.
        base_fingerprint: of the base model: its shares and experts are put together without a look at each other.
        tokenizer_sha256: of the tokenizer's file.
        rows: that were read.
        loader: draws from them; its fingerprint is the one that a resumed run compares.
        length: of the run.
        init_from: folder of an adapter to go on training.

    Raises:
        ParallelError: names what differs, ranks and machines.
    """
    if mesh.expert_parallel_group is None:
        return
    validation = hashlib.blake2b(digest_size=16)
    for store in rows.validation:
        store.update_digest(validation)
    own: dict[str, object] = {
        "model.path": base_fingerprint,
        "model.tokenizer": f"file with SHA-256 {tokenizer_sha256}",
        "adapter.init_from": _adapter_sum(init_from),
        "data.train": f"rows with sum {loader.state_dict()['fingerprint']}",
        "data.validation": f"{sum(map(len, rows.validation)):,} rows with sum {validation.hexdigest()}",
        "packed rows per epoch": length.rows_per_epoch,
        "steps of the run": length.total_steps,
    }
    require_alike(mesh, own, fix=_SAME_FILES)


def require_same_model(mesh: Mesh, identity: dict[str, object]) -> None:
    """Refuse ranks that loaded another model, tokenizer or adapter than the others. Collective.

    Args:
        mesh: of the ranks.
        identity: of what was loaded, by part.

    Raises:
        ParallelError: names what differs, ranks and machines.
    """
    require_alike(mesh, {f"model ({part})": value for part, value in identity.items()}, fix=_SAME_FILES)


def _adapter_sum(folder: str | None) -> str | None:
    """Sum of an adapter's weights; a file that is not there is refused where the adapter is read, with its name."""
    file = None if folder is None else Path(folder) / WEIGHTS_FILE
    if file is None or not file.is_file():
        return None
    with file.open("rb") as opened:
        return f"weights with SHA-256 {hashlib.file_digest(opened, 'sha256').hexdigest()}"
