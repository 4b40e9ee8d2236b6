"""Which files of a repository belong to which copy of the model, and which are never downloaded.

The public repository holds the model twice, as Hugging Face files and as Mistral-native ones, 242 GB together; one copy is enough.
Exercise it: ``pytest tests/ms4_train/weights/hub/test_selection.py``.

Not covered: files in folders of a repository; a model's files lie at its top, and ``SHA256SUMS`` names plain files.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable
from typing import Literal

from ms4_train.errors import WeightsError
from ms4_train.weights.checksums import SUMS_FILE

HubLayout = Literal["auto", "hf", "native", "all"]
RECORD_FILE = "hub.json"
"""What ``pull`` writes beside the files: where they are from."""

_COMMON = ("tekken.json", "SYSTEM_PROMPT.txt", "fp8_scales.json", "README*", "LICENSE*", "LICENCE*", "NOTICE*")
_NATIVE_WEIGHTS = "consolidated*.safetensors"
_HF_WEIGHTS = "model*.safetensors"
_ADAPTER_WEIGHTS = "adapter_model*.safetensors"
_INDEX = ".index.json"
COPIES: dict[str, tuple[str, ...]] = {
    "native": ("params.json", _NATIVE_WEIGHTS, _NATIVE_WEIGHTS + _INDEX),
    "hf": (
        "config.json",
        _HF_WEIGHTS,
        _HF_WEIGHTS + _INDEX,
        "generation_config.json",
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "*processor_config.json",
        "chat_template*",
    ),
    "adapter": ("adapter_config.json", _ADAPTER_WEIGHTS, _ADAPTER_WEIGHTS + _INDEX),
}
"""Copy -> patterns of its files: its configuration first, then its weights and their index, then companions."""

_PICKLES = {
    *(".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".nemo", ".mar", ".t7", ".h5", ".keras"),
    *(".distcp", ".pdparams", ".msgpack"),
}
_CODE = {".py", ".pyc", ".pyo", ".pyd", ".pyw", ".ipynb", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".cmd", ".ps1", ".jar", ".js"}


def is_pickle(name: str) -> bool:
    """Whether a file of this name may run code when it is loaded: pickles, and containers of them."""
    return _suffix(name) in _PICKLES


def is_code(name: str) -> bool:
    """Whether a file of this name is a program."""
    return _suffix(name) in _CODE


def _suffix(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:].lower() if dot >= 0 else ""


def is_excluded(name: str) -> bool:
    """Whether a file is in no selection: pickles, programs, hidden files, files in folders, and what ``pull`` itself writes."""
    return is_pickle(name) or is_code(name) or name.startswith(".") or "/" in name or name in {SUMS_FILE, RECORD_FILE}


def copies_in(names: Collection[str]) -> list[str]:
    """The copies (``native``, ``hf``, ``adapter``) whose configuration and weights are both among ``names``, in that order."""
    return [copy for copy, (config, weights, *_) in COPIES.items() if config in names and any(_matches(name, (weights,)) for name in names)]


def copy_of(name: str) -> str | None:
    """The copy that a file is essential to: its configuration, weights or index; None for companions and everything else."""
    return next((copy for copy, patterns in COPIES.items() if _matches(name, patterns[:3])), None)


def choose(repo: str, names: Iterable[str], layout: HubLayout) -> tuple[str, list[str]]:
    """Which files to download.

    Args:
        repo: named in errors.
        names: all paths of the repository.
        layout: ``native``, ``hf``, ``all`` (everything that is not excluded), or ``auto``: native where it is there, else hf, else an
            adapter.

    Returns:
        The layout that was taken (``native``, ``hf``, ``adapter`` or ``all``), and its files, sorted.

    Raises:
        WeightsError: the repository has no such copy, or no model at all; or two of the files differ only in upper and lower case.
    """
    usable = sorted(name for name in names if not is_excluded(name))
    found = copies_in(usable)
    if not found:
        raise WeightsError(
            "holds no model: neither params.json with consolidated*.safetensors, nor config.json with model*.safetensors, nor an adapter.",
            key=repo,
            fix="check the repository and the revision; pickled weights are not read.",
        )
    taken = found[0] if layout == "auto" else layout
    if taken == "all":
        chosen = usable
    elif taken not in found:
        raise WeightsError(f"holds no {taken} copy of a model, but: {', '.join(found)}.", key=repo, fix=f"use --layout {found[0]} or auto.")
    else:
        chosen = [name for name in usable if _matches(name, (*COPIES[taken], *_COMMON))]
    folded = {}
    for name in chosen:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise WeightsError(f"has both {other} and {name}, which are one file on some disks.", key=repo, fix="use another copy.")
    return taken, chosen


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
