"""Which keys a run file may hold, found by walking the schema's types; and the nearest one to a misspelt key.

Exercise it: ``pytest tests/ms4_train/config/test_keys.py``.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ms4_train.config.nodes import KeyPath, dotted
from ms4_train.config.schema import Section


def alternatives(annotation: Any) -> list[Any]:
    """The annotation without ``Annotated`` and ``Optional``, one entry per member of a union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in alternatives(member)]
    return [] if annotation is type(None) else [annotation]


def is_section(annotation: Any) -> bool:
    """Whether the annotation is a section of the file."""
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _child(annotation: Any, part: str | int) -> list[Any]:
    if isinstance(part, int):
        return alternatives(get_args(annotation)[0]) if get_origin(annotation) is list else []
    if get_origin(annotation) is dict:
        return alternatives(get_args(annotation)[1])
    if annotation is Any:
        return [Any]
    if is_section(annotation) and part in annotation.model_fields:
        return alternatives(annotation.model_fields[part].annotation)
    return []


def annotations_at(model: type[Section], path: KeyPath) -> list[Any]:
    """The types that may stand at ``path``; empty where the schema knows no such place."""
    found: list[Any] = [model]
    for part in path:
        found = [child for annotation in found for child in _child(annotation, part)]
    return found


def known_keys(model: type[Section], path: KeyPath, value: Any = None) -> list[str]:
    """Keys allowed in the section at ``path``.

    Args:
        model: the run's schema.
        path: the section.
        value: the section as the user wrote it; where the place takes one of several sections (``task: aime``), it chooses.
    """
    sections = [annotation for annotation in annotations_at(model, path) if is_section(annotation)]
    fitting = [section for section in sections if _could_be(section, value)]
    return sorted({key for section in fitting or sections for key in section.model_fields})


def _could_be(section: type[Section], value: Any) -> bool:
    if not isinstance(value, dict):
        return True
    for key, info in section.model_fields.items():
        if get_origin(info.annotation) is Literal and info.is_required() and key in value and value[key] not in get_args(info.annotation):
            return False
    return True


def places_of(model: type[Section], key: str) -> list[str]:
    """Dotted paths of every key of that name anywhere in the schema (lists as index 0)."""
    return [dotted(path) for path in _all_paths(model, ()) if path[-1] == key]


def _all_paths(annotation: Any, path: KeyPath) -> Iterator[KeyPath]:
    if is_section(annotation):
        for key, info in annotation.model_fields.items():
            yield (*path, key)
            for inner in alternatives(info.annotation):
                yield from _all_paths(inner, (*path, key))
    elif get_origin(annotation) is list:
        for inner in alternatives(get_args(annotation)[0]):
            yield from _all_paths(inner, (*path, 0))


def unknown_key_fix(model: type[Section], path: KeyPath, value: Any = None) -> str:
    """What to do about the unknown key at ``path``; ``value`` is the section around it."""
    key, allowed = str(path[-1]), known_keys(model, path[:-1], value)
    near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    elsewhere = sorted(set(places_of(model, key)))
    if elsewhere:
        return f"this key belongs at {' or '.join(elsewhere)}."
    if not allowed:
        return "remove it."
    return f"remove it; the keys allowed here are {', '.join(allowed)}."
