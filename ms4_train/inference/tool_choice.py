"""What ``tool_choice`` means for the tokens of an answer: a grammar that it must follow, or a token that it may not use.

- ``auto``: free; with a strict tool, calls follow their schemas. Together with a JSON form, the answer has that form or consists of calls.
- ``required``, or a named tool: calls and nothing else, whose arguments follow the tool's schema.
- ``none``: the tools stay in the prompt (earlier turns may have used them), but ``[TOOL_CALLS]`` is put out of reach.

In mode high the model may think first; the grammar holds after its thought.
Exercise it: ``pytest tests/ms4_train/inference/test_tool_choice.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ms4_train.chat.special_ids import SpecialIds
from ms4_train.chat.tool_grammar import ToolChoice, chosen_tools, forced_call_grammar, free_call_grammar, has_strict_tool
from ms4_train.errors import EngineError
from ms4_train.inference.grammars import JSON_OPTIONS
from ms4_train.inference.sampling_params import MAX_BIAS, ConstraintSpec, SamplingParams
from ms4_train.untrusted import parse_json


def with_tool_choice(
    sampling: SamplingParams,
    tools: Sequence[Mapping[str, Any]],
    choice: ToolChoice,
    *,
    ids: SpecialIds,
    may_think: bool,
    parallel: bool = True,
) -> SamplingParams:
    """``sampling`` under a tool choice.

    Args:
        sampling: with the form that the answer must have, if any, as its constraint.
        tools: checked definitions in OpenAI's form.
        choice: auto, none, required, or one tool in OpenAI's form.
        ids: of the tokenizer.
        may_think: whether the model may think first (mode high).
        parallel: whether an answer may hold several calls. Where nothing constrains the answer, the model decides.

    Raises:
        EngineError: ``tool_choice``: it names no tool, or cannot be together with the answer's form.
        UntrustedInputError: the form's schema is not JSON.
    """
    if choice == "none":
        # Bias, not grammar: it costs nothing per token and leaves room for a form. 100 is e^100 in probability.
        others = tuple(pair for pair in sampling.logit_bias if pair[0] != ids.tool_calls)
        return replace(sampling, logit_bias=(*others, (ids.tool_calls, -MAX_BIAS)))
    constraint = tool_constraint(tools, choice, ids=ids, may_think=may_think, parallel=parallel, form=sampling.constraint)
    return replace(sampling, constraint=constraint)


def tool_constraint(
    tools: Sequence[Mapping[str, Any]],
    choice: ToolChoice,
    *,
    ids: SpecialIds,
    may_think: bool,
    parallel: bool = True,
    form: ConstraintSpec | None = None,
) -> ConstraintSpec | None:
    """The form of an answer under a tool choice other than none; None where it is free. Arguments and errors as ``with_tool_choice``."""
    if choice == "auto":
        grammar = _auto_grammar(tools, ids, parallel, form)
        return form if grammar is None else ConstraintSpec("lark", grammar, after_thinking=may_think)
    chosen = chosen_tools(tools, choice)
    if form is not None:
        raise EngineError(
            "asks for a call, and the answer must have a form of its own.", key="tool_choice", fix="choose auto, or drop the form."
        )
    return ConstraintSpec("lark", forced_call_grammar(chosen, ids=ids, parallel=parallel), after_thinking=may_think)


def _auto_grammar(tools: Sequence[Mapping[str, Any]], ids: SpecialIds, parallel: bool, form: ConstraintSpec | None) -> str | None:
    if not tools or (form is None and not has_strict_tool(tools)):
        return None
    if form is None:
        return free_call_grammar(tools, ids=ids, parallel=parallel)
    if form.kind == "json_object":
        return free_call_grammar(tools, ids=ids, parallel=parallel, answer_schema={"type": "object", "x-guidance": JSON_OPTIONS})
    if form.kind == "json_schema":
        schema = {**_schema_object(form.text), "x-guidance": JSON_OPTIONS}  # as without tools: bounded spaces, never lenient
        return free_call_grammar(tools, ids=ids, parallel=parallel, answer_schema=schema)
    raise EngineError(
        f"lets the model call tools, and the answer must follow a {form.kind}.",
        key="tool_choice",
        fix="choose none, or ask for a JSON schema.",
    )


def _schema_object(text: str) -> Mapping[str, Any]:
    schema = parse_json(text)
    if not isinstance(schema, dict):
        raise EngineError("is not a JSON schema.", key="constraint", fix="give a JSON object.")
    return schema
