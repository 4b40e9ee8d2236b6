"""Which files of a folder are its weights: Hugging Face's, Mistral's own, or both side by side.

Exercise it: ``pytest tests/ms4_train/weights/layouts/test_detect.py``.

Not covered: what is in the files (``evidence``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ms4_train.errors import WeightsError

Family = Literal["hf", "native"]
FamilyChoice = Literal["auto", "hf", "native"]

SINGLE_FILES: Mapping[Family, str] = {"hf": "model.safetensors", "native": "consolidated.safetensors"}
INDEX_FILES: Mapping[Family, str] = {family: f"{name}.index.json" for family, name in SINGLE_FILES.items()}
NATIVE_SHARDS = "consolidated[-.]*.safetensors"
"""Shards of native releases that came without an index."""
CONFIG_FILES: Mapping[Family, str] = {"hf": "config.json", "native": "params.json"}

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_WORDS = {"hf": "Hugging Face", "native": "Mistral-native"}


def families_present(folder: Path) -> list[Family]:
    """The families of weight files that lie in a folder, native first."""
    found: list[Family] = []
    if any(_is_there(folder / name) for name in (SINGLE_FILES["native"], INDEX_FILES["native"])) or (
        _is_there(folder / CONFIG_FILES["native"]) and next(folder.glob(NATIVE_SHARDS), None)
    ):
        found.append("native")
    if any(_is_there(folder / name) for name in (SINGLE_FILES["hf"], INDEX_FILES["hf"])):
        found.append("hf")
    return found


def find_family(folder: str | Path, wanted: FamilyChoice = "auto") -> Family:
    """The family of files to read from a folder: native where both are there, unless the caller wants the other.

    A folder without weights goes by its configuration, so that this can be read alone.

    Raises:
        WeightsError: the folder holds no files of the wanted family, or none at all; says what it holds instead.
    """
    folder = Path(folder)
    found: list[Family] = families_present(folder) if folder.is_dir() else []
    if not found:
        found = [family for family, name in CONFIG_FILES.items() if (folder / name).exists()]
    if not found:
        raise no_weights(folder, wanted)
    if wanted == "auto":
        return found[0]
    if wanted not in found:
        raise WeightsError(
            f"holds {_WORDS[found[0]]} weights and no {_WORDS[wanted]} ones.", file=folder, fix=f"ask for {found[0]}, or leave it at auto."
        )
    return wanted


def no_weights(folder: Path, wanted: FamilyChoice = "auto") -> WeightsError:
    """The error for a folder without weights that can be read; says what it holds instead."""
    if not folder.is_dir():
        return WeightsError("there is no such folder.", file=folder, fix="check model.path; relative paths start at the current folder.")
    names = sorted(entry.name for entry in folder.iterdir())
    broken = [name for name in names if name.endswith((".safetensors", ".index.json")) and not (folder / name).exists()]
    if broken:
        return broken_link(folder / broken[0])
    stray = [name for name in names if name.endswith(".safetensors")]
    if not stray and any(name.endswith(_PICKLES) for name in names):
        return WeightsError("holds pickled weights, which are never read.", file=folder, fix="convert them to safetensors.")
    if "adapter_config.json" in names:
        return WeightsError(
            "is an adapter, not a model.", file=folder, fix="set model.path to the base model and model.adapter to this folder."
        )
    if any(name.startswith("consolidated") for name in stray):
        return WeightsError(
            f"holds {stray[0]} but no {CONFIG_FILES['native']}.", file=folder, fix="download the configuration of the model."
        )
    if stray:
        return WeightsError(f"holds {stray[0]} but no {INDEX_FILES['hf']}.", file=folder, fix="download the index of the model.")
    families = ("hf", "native") if wanted == "auto" else (wanted,)
    looked_for = [files[family] for files in (SINGLE_FILES, INDEX_FILES, CONFIG_FILES) for family in families]
    absent = [name for name in looked_for if name not in names]
    return WeightsError(f"holds none of {', '.join(absent)}.", file=folder, fix="check model.path.")


def broken_link(file: Path) -> WeightsError:
    """The error for a symbolic link that leads nowhere, or in a circle."""
    return WeightsError("is a link to a file that is not there.", file=file, fix="download the model again.")


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()
