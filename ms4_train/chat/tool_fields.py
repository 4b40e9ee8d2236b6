"""Checks the tool parts of a row: definitions, calls, and that every result belongs to a call.

mistral-common's own classes decide what a definition is, so that what passes here is what the tokenizer will accept.
Exercise it: ``pytest tests/ms4_train/chat/test_tool_fields.py``.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.tool_calls import Tool
from mistral_common.utils.json_utils import validate_json_schema_by_draft7

from ms4_train.chat.types import Message, ToolCall
from ms4_train.errors import RowError, UntrustedInputError
from ms4_train.untrusted import parse_json

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NAME_FIX = "use 1 to 64 letters, digits, underscores or dashes."


def read_tools(value: Any) -> str:
    """Check tool definitions and return them as canonical JSON text; empty text for none.

    Args:
        value: None, a list in OpenAI's form, or the same as JSON text (columnar files often store it so).

    Raises:
        RowError: ``bad-tools``.
    """
    if value is None or value == "" or value == []:
        return ""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except UntrustedInputError as error:
            raise _bad_tools(f"is {error.message}", "tools") from None
        if value == []:
            return ""
    if not isinstance(value, list):
        raise _bad_tools("must be a list of tool definitions.", "tools")
    text = _dump_json(value)
    if text is None:
        raise _bad_tools("holds a value that JSON cannot express.", "tools")
    _check_tools(text)
    return text


@functools.lru_cache(maxsize=4096)
def _check_tools(text: str) -> None:
    # Most rows of a data set repeat the same tools, and checking a JSON Schema takes a millisecond: hence the cache.
    seen: set[str] = set()
    for index, entry in enumerate(json.loads(text)):
        key = f"tools[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("function"), dict):
            raise _bad_tools('must be {"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}.', key)
        try:
            tool = Tool.from_openai(entry)
            validate_json_schema_by_draft7(value=tool.function.parameters)
        except (ValueError, TypeError, MistralCommonException) as error:
            raise _bad_tools(f"is not a valid definition ({_first_line(error)}).", key) from None
        if not _NAME.fullmatch(tool.function.name):
            raise _bad_tools("has an unusable name.", f"{key}.function.name", _NAME_FIX)
        if tool.function.name in seen:
            raise _bad_tools(f"defines {tool.function.name} a second time.", key)
        seen.add(tool.function.name)


def read_tool_calls(value: Any, key: str) -> tuple[ToolCall, ...]:
    """Check the ``tool_calls`` of an assistant message.

    Arguments may be an object or JSON text of an object. An ``id`` may be missing (see ``pair_results``).

    Raises:
        RowError: ``bad-tool-call``.
    """
    if value is None or value == []:
        return ()
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except UntrustedInputError as error:
            raise _bad_call(f"is {error.message}", key) from None
    if not isinstance(value, list):
        raise _bad_call("must be a list of calls.", key)
    calls = tuple(_read_tool_call(entry, f"{key}[{index}]") for index, entry in enumerate(value))
    ids = [call.id for call in calls if call.id]
    if len(set(ids)) != len(ids):
        raise _bad_call("two calls of one turn have the same id.", key)
    return calls


def _read_tool_call(entry: Any, key: str) -> ToolCall:
    function = entry.get("function") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(function, Mapping):
        raise _bad_call('must be {"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}.', key)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _bad_call("has an unusable name.", f"{key}.function.name", _NAME_FIX)
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except UntrustedInputError as error:
            raise _bad_call(f"is {error.message}", f"{key}.function.arguments") from None
    text = _dump_json(arguments)
    if not isinstance(arguments, Mapping) or text is None:
        raise _bad_call("must be a JSON object, or the text of one.", f"{key}.function.arguments")
    return ToolCall(name=name, arguments=text, id=read_call_id(entry.get("id"), f"{key}.id"))


def read_call_id(value: Any, key: str) -> str:
    """A call's id, empty where it is missing (``"null"`` counts as missing, as in mistral-common).

    Raises:
        RowError: ``bad-tool-call``.
    """
    if value is None or value == "null":
        return ""
    if not isinstance(value, str):
        raise _bad_call("must be text.", key)
    return value


def pair_results(calls: tuple[ToolCall, ...], results: Sequence[Message], key: str) -> tuple[tuple[ToolCall, ...], list[Message]]:
    """Give every call its result, and put results into the order of the calls, as mistral-common does.

    Where no call and no result has an id, they are paired by position, and ids are made up: the token stream holds none.

    Args:
        calls: the calls of one assistant turn.
        results: the tool messages that follow it, all of them.
        key: place of the assistant message, for errors.

    Raises:
        RowError: ``tool-result``: a result without a call, a call without a result, or two results for one call.
    """
    if not any(call.id for call in calls) and not any(result.tool_call_id for result in results):
        calls = tuple(replace(call, id=f"call{index:05d}") for index, call in enumerate(calls))
        results = [replace(result, tool_call_id=f"call{index:05d}") for index, result in enumerate(results)]
    order = {call.id: index for index, call in enumerate(calls)}
    if "" in order:
        raise _bad_call("a call has no id.", f"{key}.tool_calls", "give every call and every result an id, or none of them.")
    if not results:
        return calls, []
    answered: set[str] = set()
    for result in results:
        if result.tool_call_id not in order:
            raise _bad_result(f"a result names the call {result.tool_call_id!r}, which this turn did not make.", key)
        if result.tool_call_id in answered:
            raise _bad_result(f"the call {result.tool_call_id!r} has two results.", key)
        answered.add(result.tool_call_id)
    if len(answered) != len(calls):
        missing = next(call.id for call in calls if call.id not in answered)
        raise _bad_result(f"the call {missing!r} has no result.", key)
    return calls, sorted(results, key=lambda result: order[result.tool_call_id])


def _dump_json(value: Any) -> str | None:
    """JSON text in the spelling mistral-common encodes; None where ``value`` is not JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return " ".join(lines[:3])[:200] if lines else type(error).__name__


def _bad_tools(message: str, key: str, fix: str | None = None) -> RowError:
    return RowError(message, row_code="bad-tools", key=key, fix=fix or "write tools in OpenAI's form.")


def _bad_call(message: str, key: str, fix: str | None = None) -> RowError:
    return RowError(message, row_code="bad-tool-call", key=key, fix=fix or "write tool calls in OpenAI's form.")


def _bad_result(message: str, key: str) -> RowError:
    return RowError(message, row_code="tool-result", key=key, fix="after a turn with calls, give one tool message for each call.")
