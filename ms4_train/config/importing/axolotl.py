"""axolotl's YAML -> a run file of ours, with a report of every key. The names that are translated are those of axolotl 0.18.

Each subject has its own file: ``axolotl_model``, ``axolotl_data``, ``axolotl_adapter``, ``axolotl_training``; ``axolotl_dropped`` holds the
keys that have no place here.

Exercise it: ``ms4 config import-axolotl FILE``, or ``pytest tests/ms4_train/config/importing/test_axolotl.py``.

Not covered: preference and reward training (``rl``, ``reward_model``), pretraining on raw text, Python plugins of the user's.
"""

from __future__ import annotations

from pathlib import Path

from ms4_train.config.importing.axolotl_adapter import translate_adapter
from ms4_train.config.importing.axolotl_data import translate_data
from ms4_train.config.importing.axolotl_dropped import drop_the_rest
from ms4_train.config.importing.axolotl_model import translate_model
from ms4_train.config.importing.axolotl_training import translate_parallel, translate_tracking, translate_training
from ms4_train.config.importing.draft import Draft
from ms4_train.config.load import validate
from ms4_train.config.nodes import Document, read_document
from ms4_train.config.schema import SftRun
from ms4_train.errors import ConfigError, UntrustedInputError

_OTHER_TRAINING = ("rl", "reward_model", "process_reward_model", "pretraining_dataset")
_ORDER = ("recipe", "output_dir", "seed", "model", "data", "adapter", "training", "parallel", "tracking")


def import_axolotl(path: str | Path) -> Draft:
    """Translate one file. ``commented_yaml`` and ``report`` in ``report.py`` make text of the result.

    Raises:
        ConfigError: with file, line, key and fix: it is malformed, asks for other training, or a value cannot be translated.
    """
    draft = Draft(read_document(path))
    for key in _OTHER_TRAINING:
        if draft.value((key,)):
            raise ConfigError(
                "only supervised fine-tuning is translated.",
                file=path,
                line=draft.document.line_of((key,)),
                key=key,
                fix="remove the key, if supervised fine-tuning is what you want.",
            )
    draft.comment((), f"Translated from axolotl's {Path(path).name}. Paths count from the current folder.")
    draft.run["recipe"] = "sft"
    draft.put("output_dir" if draft.text("output_dir") else "(default)", ("output_dir",), draft.text("output_dir") or "runs/axolotl")
    try:
        for part in (translate_model, translate_data, translate_adapter, translate_training, translate_parallel, translate_tracking):
            part(draft)
    except UntrustedInputError as error:
        raise ConfigError(error.message, file=path, key=error.key, fix=error.fix) from None
    drop_the_rest(draft)
    draft.run = {key: draft.run[key] for key in _ORDER if key in draft.run}
    validate(Document(draft.run, {}, f"translation of {path}"), SftRun)
    return draft
