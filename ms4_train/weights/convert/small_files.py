"""The files beside the weights of a converted model: configuration, index, companions, and kept scales.

Exercise it: ``pytest tests/ms4_train/weights/convert/test_small_files.py``.
"""

from __future__ import annotations

import json
from typing import Any

from ms4_train.weights.checksums import SUMS_FILE
from ms4_train.weights.companions import read_companions
from ms4_train.weights.convert.plan import FolderPlan
from ms4_train.weights.convert.target import Target
from ms4_train.weights.layouts.detect import CONFIG_FILES, INDEX_FILES
from ms4_train.weights.layouts.hf_config import to_generation_config, to_hf_model_config
from ms4_train.weights.layouts.native_config import NO_ACTIVATION_SCALES, to_params
from ms4_train.weights.reading.checkpoint import DTYPES, Checkpoint
from ms4_train.weights.scales_file import SCALES_FILE, scales_text

GENERATION_CONFIG = "generation_config.json"


def small_files(source: Checkpoint, target: Target, plan: FolderPlan) -> dict[str, bytes]:
    """Name -> content. The source's ``generation_config.json`` goes along with every layout; Hugging Face ones have one in any case.

    Raises:
        WeightsError: the layout cannot express the configuration.
        UntrustedInputError: a companion cannot be read.
    """
    table = target.table
    files = read_companions(source.folder)
    if table.layout.is_hf:
        config = to_hf_model_config(source.config, dtype=DTYPES[table.dtype], fp8=table.layout.encoding == "fp8")
        if table.layout.encoding == "fp8" and not target.has_activation_scales:
            config["quantization_config"]["activation_scheme"] = "dynamic"
        files[CONFIG_FILES["hf"]] = _json(config)
        files.setdefault(GENERATION_CONFIG, _json(to_generation_config(source.config.text)))
    else:
        params = to_params(source.config, table.layout)
        if table.layout.encoding == "fp8" and not target.has_activation_scales:
            params["quantization"]["qscheme_act"] = NO_ACTIVATION_SCALES
        files[CONFIG_FILES["native"]] = _json(params)
    if plan.index_name is not None:
        files[plan.index_name] = _json(plan.index())
    if target.sidecar:
        files[SCALES_FILE] = scales_text(target.sidecar).encode()
    return files


def left_behind(source: Checkpoint, written: dict[str, bytes]) -> tuple[str, ...]:
    """Files of the source folder that neither went along nor were replaced, by name; hidden ones are not counted."""
    taken = {*(path.name for path in source.files), *written, *CONFIG_FILES.values(), INDEX_FILES[source.family], SCALES_FILE, SUMS_FILE}
    return tuple(sorted(path.name for path in source.folder.iterdir() if not path.name.startswith(".") and path.name not in taken))


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
