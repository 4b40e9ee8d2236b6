"""The JSON Schema of run files, for editors that complete and check YAML. Exercise it: ``ms4 config schema``."""

from __future__ import annotations

from typing import Annotated, Any, Union

from ms4_train.config.load import RECIPES
from ms4_train.errors import ConfigError


def json_schema(recipe: str | None = None) -> dict[str, Any]:
    """The JSON Schema of one recipe's files, or of all recipes, told apart by ``recipe:``.

    Raises:
        ConfigError: there is no such recipe.
    """
    from pydantic import Field, TypeAdapter

    if recipe is not None and recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!a}.", fix=f"use one of {', '.join(RECIPES)}.")
    if recipe is None:
        any_run: Any = Annotated[Union[tuple(RECIPES.values())], Field(discriminator="recipe")]  # noqa: UP007 (members known at run time)
        schema = TypeAdapter(any_run).json_schema()
    else:
        schema = RECIPES[recipe].model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "ms4 run file"}
