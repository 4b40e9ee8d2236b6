"""One YAML file -> one validated run. Every fault of the file is reported at once, each with line, key and fix.

Exercise it: ``ms4 config check FILE.yaml`` and ``pytest tests/ms4_train/config/test_load.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ms4_train.config.evaluation import EvalRun
from ms4_train.config.nodes import Document, KeyPath, read_document
from ms4_train.config.overrides import apply_overrides
from ms4_train.config.problems import combine, problems_of
from ms4_train.config.schema import SftRun
from ms4_train.errors import ConfigError

RECIPES: dict[str, type[SftRun] | type[EvalRun]] = {"sft": SftRun, "eval": EvalRun}
"""What ``recipe:`` may name, and the schema of its files."""


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> SftRun | EvalRun:
    """Read, override and validate a run file. Relative paths inside it stay as they are: they count from the current folder.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value`` texts, applied in order.

    Raises:
        ConfigError: the file or an override cannot be used; the message lists every problem with its line, key and fix.
    """
    document = read_document(path)
    model = _choose(document, list(overrides))
    values, places = apply_overrides(document.values, model, list(overrides))
    return validate(Document(values, document.lines, document.file), model, places)


def validate(document: Document, model: type[SftRun] | type[EvalRun], places: dict[KeyPath, str] | None = None) -> SftRun | EvalRun:
    """Validate values against a schema, without any conversion between types but whole number -> number.

    Args:
        document: values and the lines they stand in.
        model: the schema.
        places: for values set by an override, the override's text.

    Raises:
        ConfigError: as ``load_run``.
    """
    try:
        return model.model_validate(document.values, strict=True)
    except ValidationError as error:
        raise combine(problems_of(error, model, document, places or {}), document.file) from None


def _choose(document: Document, overrides: list[str]) -> type[SftRun] | type[EvalRun]:
    """The schema that ``recipe`` names, in the last override of it or in the file."""
    named = [text.partition("=")[2].strip() for text in overrides if text.partition("=")[0].strip() == "recipe"]
    recipe = named[-1] if named else document.values.get("recipe")
    choices = " or ".join(f"'recipe: {name}'" for name in RECIPES)
    if recipe is None:
        near = difflib.get_close_matches("recipe", document.values, n=1, cutoff=0.6)
        hint = f" instead of '{near[0]}:'" if near else " at the top level"
        raise ConfigError("this key is missing.", file=document.file, line=1, key="recipe", fix=f"write {choices}{hint}.")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        line = None if named else document.line_of(("recipe",))
        file = f"override recipe={recipe}" if named else document.file
        raise ConfigError(f"there is no recipe {ascii(recipe)[:60]}.", file=file, line=line, key="recipe", fix=f"write {choices}.")
    return RECIPES[recipe]
