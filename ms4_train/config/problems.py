"""What pydantic found wrong -> errors that name the file, the line, the key, what is wrong and what to write instead.

Exercise it: ``pytest tests/ms4_train/config/test_problems.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ms4_train.config.keys import annotations_at, is_section, known_keys, unknown_key_fix
from ms4_train.config.nodes import Document, KeyPath, dotted
from ms4_train.config.schema import Section
from ms4_train.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_YAML_1_1_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_BOUNDS = {"greater_than": "greater than", "greater_than_equal": "at least", "less_than": "less than", "less_than_equal": "at most"}


def problems_of(error: ValidationError, model: type[Section], document: Document, places: dict[KeyPath, str]) -> list[ConfigError]:
    """One ``ConfigError`` per fault, in the order of the file.

    Args:
        error: what pydantic raised for ``document``.
        model: the schema that was used.
        document: values (with overrides applied) and lines.
        places: for keys that an override set, the override's text, which is named instead of file and line.
    """
    found = [_problem(details, model, document, places) for details in error.errors(include_url=False)]
    return sorted(found, key=lambda problem: problem.line or 0)


def combine(problems: list[ConfigError], file: str | None) -> ConfigError:
    """One error for all problems of a file: the problem itself where there is one, else a list with a line for each."""
    if len(problems) == 1:
        return problems[0]
    return ConfigError(f"{len(problems)} problems:" + "".join(f"\n  {problem}" for problem in problems), file=file)


def _problem(details: ErrorDetails, model: type[Section], document: Document, places: dict[KeyPath, str]) -> ConfigError:
    path = _key_path(details, document.values)
    message, fix = _words(details, model, path, document.values)
    override = next((places[path[:end]] for end in range(len(path), 0, -1) if path[:end] in places), None)
    if override is not None:
        return ConfigError(message, file=f"override {override}", key=dotted(path), fix=fix)
    # Where the key itself is missing, the line is that of the section that should hold it.
    return ConfigError(message, file=document.file, line=document.line_of(path), key=dotted(path) or None, fix=fix)


def _key_path(details: ErrorDetails, values: Any) -> KeyPath:
    """pydantic's location without the names of union members that it puts between the keys."""
    path: KeyPath = ()
    location = details["loc"]
    for position, part in enumerate(location):
        if isinstance(values, dict) and part in values:  # noqa: SIM114 (pyright cannot narrow the joined test)
            values = values[part]
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        elif position < len(location) - 1 or details["type"] != "missing":
            continue
        path = (*path, part)
    return path


def _value_at(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values[part]
    return values


def _shown(value: Any) -> str:
    """A value as the user may have written it, short."""
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or isinstance(value, bool) else None
    if isinstance(value, dict):
        text = "a section"
    elif isinstance(value, list):
        text = "a list"
    elif isinstance(value, str):
        text = f"the text {value!a}"
    text = text if text is not None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _words(details: ErrorDetails, model: type[Section], path: KeyPath, values: Any) -> tuple[str, str]:
    """Message and fix for one of pydantic's error types."""
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key.", unknown_key_fix(model, path, _value_at(values, path[:-1]))
    if kind == "missing":
        return "this key is missing.", f"add '{path[-1]}:' {_under(path)}."
    if kind == "literal_error":
        return f"{_shown(given)} is not one of the choices.", f"write {context['expected']}."
    if kind in _BOUNDS:
        bound = context.get("gt", context.get("ge", context.get("lt", context.get("le"))))
        return f"{_shown(given)} is out of range.", f"write a number {_BOUNDS[kind]} {bound:.12g}."
    if kind == "too_short":
        return "the list is empty.", f"give at least {context['min_length']} entry."
    if kind == "union_tag_invalid":
        choices = context["expected_tags"].replace("'", "").replace(", ", " or ")
        return f"{_shown(context['tag'])} is not one of the choices.", f"write {context['discriminator'].strip(chr(39))}: {choices}."
    if kind == "union_tag_not_found":
        return f"the key {context['discriminator']} is missing.", "add it; it says which kind of entry this is."
    if kind == "value_error":
        text = str(context.get("error", details["msg"]))
        what, _, fix = text.partition("; ")
        return f"{what}.", f"{fix}." if fix else "change one of the keys named."
    return _wrong_type(kind, given, model, path, details["msg"])


def _wrong_type(kind: str, given: Any, model: type[Section], path: KeyPath, message: str) -> tuple[str, str]:
    if kind == "bool_type":
        word = _YAML_1_1_BOOLEANS.get(given.lower()) if isinstance(given, str) else None
        return f"{_shown(given)} is not a boolean.", f"write {word or 'true or false'}."
    if kind in ("int_type", "int_from_float"):
        return f"{_shown(given)} is not a whole number.", _number_fix(given, "a whole number without quotes, such as 100")
    if kind == "float_type":
        return f"{_shown(given)} is not a number.", _number_fix(given, "a number without quotes, such as 0.1 or 6e-5")
    if kind == "finite_number":
        return f"{_shown(given)} is not a finite number.", "write a finite number."
    if kind == "string_type":
        fix = f"put it in quotes: '{given}'." if isinstance(given, int | float) and not isinstance(given, bool) else "write text."
        return f"{_shown(given)} is not text.", fix
    if kind == "list_type":
        return f"{_shown(given)} is not a list.", "write entries that start with '- ', or [a, b]."
    if any(is_section(annotation) for annotation in annotations_at(model, path)):
        names = ", ".join(known_keys(model, path))
        return f"{_shown(given)} stands where a section belongs.", f"indent keys below it ({names}), or remove the line."
    return f"{message}.", "change the value."


def _number_fix(given: Any, wanted: str) -> str:
    if isinstance(given, str) and given.replace("_", "").isdecimal():
        return f"write {given.replace('_', '')}."
    return f"write {wanted}."


def _under(path: KeyPath) -> str:
    return f"under {dotted(path[:-1])}" if len(path) > 1 else "at the top level"
