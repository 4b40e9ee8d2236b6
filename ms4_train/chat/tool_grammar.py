"""Grammars for answers that must, or must rightly, call tools, in llguidance's Lark dialect.

A call is ``[TOOL_CALLS]`` name ``[ARGS]`` arguments, the tags as control tokens (``<[9]>`` is the token with id 9), so text that spells a
tag is no call. Arguments are JSON in the spelling that the model was trained on (spec section 4): ``{"k": "v"}``, one space after colons
and commas, keys in the schema's order. Exercise it: ``pytest tests/ms4_train/chat/test_tool_grammar.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ms4_train.chat.special_ids import SpecialIds
from ms4_train.errors import EngineError

ToolChoice = str | Mapping[str, Any]
"""``auto``, ``none``, ``required``, or ``{"type": "function", "function": {"name": ...}}`` for one tool."""

_SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_TEXT = r"/(.|\n)+/"


def forced_call_grammar(tools: Sequence[Mapping[str, Any]], *, ids: SpecialIds, parallel: bool = True) -> str:
    """A grammar of one call or several, and nothing else.

    Args:
        tools: the definitions that may be called, in OpenAI's form. Parts of a schema that llguidance does not know are left unchecked,
            unless the definition says ``strict``.
        ids: of the tokenizer.
        parallel: whether there may be several calls.
    """
    return f"start: calls\n{_call_rules(tools, ids, parallel)}"


def free_call_grammar(
    tools: Sequence[Mapping[str, Any]], *, ids: SpecialIds, parallel: bool = True, answer_schema: Mapping[str, Any] | None = None
) -> str:
    """A grammar of an answer that may call tools, but only rightly: arguments of strict tools follow their schema, others are objects.

    Args:
        tools, ids, parallel: as for ``forced_call_grammar``.
        answer_schema: JSON schema of an answer without calls; with None an answer is any text, and calls may follow it.
    """
    loose = [tool if _is_strict(tool) else _with_any_object(tool) for tool in tools]
    rules = _call_rules(loose, ids, parallel)
    if answer_schema is None:
        return f"start: text? calls?\ntext: {_TEXT}\n{rules}"
    return f"start: answer | calls\nanswer: %json {json.dumps(answer_schema)}\n{rules}"


def has_strict_tool(tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a definition asks that its calls follow its schema."""
    return any(_is_strict(tool) for tool in tools)


def chosen_tools(tools: Sequence[Mapping[str, Any]], choice: ToolChoice) -> list[Mapping[str, Any]]:
    """The tools that ``choice`` (not ``auto`` or ``none``) lets the model call.

    Raises:
        EngineError: ``tool_choice``: there are no tools, none of that name, or the choice has another form.
    """
    name = None
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
    if choice != "required" and (not isinstance(name, str) or (isinstance(choice, Mapping) and choice.get("type") != "function")):
        raise _bad_choice("must be auto, none, required or one function.", 'name one as {"type": "function", "function": {"name": "..."}}.')
    if not tools:
        raise _bad_choice("asks for a call, but there are no tools.", "give tools, or leave tool_choice out.")
    if name is None:
        return list(tools)
    chosen = [tool for tool in tools if tool["function"]["name"] == name]
    if not chosen:
        known = ", ".join(tool["function"]["name"] for tool in tools)
        raise _bad_choice(f"names {name!r:.80}, which is not among the tools.", f"choose one of {known:.200}.")
    return chosen


def _call_rules(tools: Sequence[Mapping[str, Any]], ids: SpecialIds, parallel: bool) -> str:
    calls = " | ".join(f"{json.dumps(tool['function']['name'])} <[{ids.args}]> %json {_arguments_schema(tool)}" for tool in tools)
    return f"calls: call{'+' if parallel else ''}\ncall: <[{ids.tool_calls}]> ({calls})\n"


def _arguments_schema(tool: Mapping[str, Any]) -> str:
    schema: dict[str, Any] = dict(tool["function"].get("parameters") or {"properties": {}, "additionalProperties": False})
    schema.setdefault("type", "object")  # arguments are an object even where a schema forgets to say so
    return json.dumps(schema | {"x-guidance": _SPELLING | {"lenient": not _is_strict(tool)}})


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return tool["function"].get("strict") is True


def _with_any_object(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"function": {"name": tool["function"]["name"], "parameters": {"type": "object"}}}


def _bad_choice(message: str, fix: str) -> EngineError:
    return EngineError(message, key="tool_choice", fix=fix)
