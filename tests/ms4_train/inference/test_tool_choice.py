"""Tool choices as sampling parameters."""

from __future__ import annotations

from typing import Any

import pytest
from support.tokenizers import tiny_tokenizer

from ms4_train.chat.tool_grammar import forced_call_grammar, free_call_grammar
from ms4_train.errors import EngineError, UntrustedInputError
from ms4_train.inference.grammars import JSON_OPTIONS
from ms4_train.inference.sampling_params import ConstraintSpec, SamplingParams
from ms4_train.inference.tool_choice import with_tool_choice

IDS = tiny_tokenizer().ids
ADD: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
MUL: dict[str, Any] = {"type": "function", "function": {"name": "mul", "parameters": {"type": "object"}, "strict": True}}
PLAIN = SamplingParams(temperature=0.5, logit_bias=((3, 1.0), (IDS.tool_calls, 5.0)))


def chosen(choice: Any, tools: list[dict[str, Any]], sampling: SamplingParams = PLAIN, *, may_think: bool = False) -> SamplingParams:
    return with_tool_choice(sampling, tools, choice, ids=IDS, may_think=may_think)


def test_auto_is_free_unless_a_tool_is_strict() -> None:
    assert chosen("auto", [ADD]) == PLAIN
    assert chosen("auto", []) == PLAIN
    assert chosen("auto", [ADD, MUL]).constraint == ConstraintSpec("lark", free_call_grammar([ADD, MUL], ids=IDS), after_thinking=False)


def test_none_puts_calls_out_of_reach_and_keeps_the_rest() -> None:
    form = ConstraintSpec("json_object")
    sampling = chosen("none", [ADD, MUL], SamplingParams(logit_bias=PLAIN.logit_bias, constraint=form))
    assert dict(sampling.logit_bias) == {3: 1.0, IDS.tool_calls: -100.0}
    assert len(sampling.logit_bias) == 2
    assert sampling.constraint == form


@pytest.mark.parametrize("may_think", [False, True])
def test_required_and_named_choices_force_calls_after_a_thought_where_there_may_be_one(may_think: bool) -> None:
    expected = ConstraintSpec("lark", forced_call_grammar([ADD, MUL], ids=IDS), after_thinking=may_think)
    assert chosen("required", [ADD, MUL], may_think=may_think).constraint == expected
    named = chosen({"type": "function", "function": {"name": "mul"}}, [ADD, MUL], may_think=may_think).constraint
    assert named == ConstraintSpec("lark", forced_call_grammar([MUL], ids=IDS), after_thinking=may_think)


def test_a_form_and_calls_stand_side_by_side() -> None:
    form = ConstraintSpec("json_schema", '{"type": "array"}')
    assert chosen("auto", [], SamplingParams(constraint=form)).constraint == form
    both = chosen("auto", [ADD], SamplingParams(constraint=form)).constraint
    assert both is not None
    assert both.text == free_call_grammar([ADD], ids=IDS, answer_schema={"type": "array", "x-guidance": JSON_OPTIONS})
    anything = chosen("auto", [ADD], SamplingParams(constraint=ConstraintSpec("json_object"))).constraint
    assert anything is not None
    assert anything.text == free_call_grammar([ADD], ids=IDS, answer_schema={"type": "object", "x-guidance": JSON_OPTIONS})


@pytest.mark.parametrize(
    ("choice", "form"),
    [("required", ConstraintSpec("json_object")), ("auto", ConstraintSpec("regex", "a+")), ("required ", None)],
)
def test_what_cannot_be_together_is_refused(choice: str, form: ConstraintSpec | None) -> None:
    with pytest.raises(EngineError) as caught:
        chosen(choice, [ADD], SamplingParams(constraint=form))
    assert caught.value.key == "tool_choice"


@pytest.mark.parametrize(("text", "error"), [("{", UntrustedInputError), ("3", EngineError)])
def test_a_form_that_is_no_schema_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        chosen("auto", [ADD], SamplingParams(constraint=ConstraintSpec("json_schema", text)))
