"""Grammars of calls, run by llguidance itself and compared with jsonschema and with mistral-common's own grammar of answers."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import jsonschema
import llguidance
import pytest
from mistral_common.guidance.grammar_factory import GrammarFactory
from mistral_common.guidance.tokenizer import from_mistral_tokenizer
from mistral_common.protocol.instruct.messages import UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import Tool, ToolChoiceEnum
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from support.tokenizers import TINY_RANKS, tiny_tokenizer, tokenizer_file

from ms4_train.chat import parse_answer
from ms4_train.chat.tool_grammar import chosen_tools, forced_call_grammar, free_call_grammar, has_strict_tool
from ms4_train.errors import EngineError

TOKENIZER = tiny_tokenizer()
IDS = TOKENIZER.ids


def tool(name: str, parameters: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters, **more}}


ADD = tool(
    "add",
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
)
REWRITE = tool("rewrite", {"type": "object", "properties": {"text": {"enum": ["x", "y z"]}}, "additionalProperties": False})


@cache
def mistral_tokenizer() -> MistralTokenizer[Any, Any, Any, Any, Any]:
    return MistralTokenizer.from_file(str(tokenizer_file(TINY_RANKS)))


@cache
def guidance_tokenizer() -> llguidance.LLTokenizer:
    return from_mistral_tokenizer(mistral_tokenizer())


def call_ids(name: str, arguments: str) -> list[int]:
    return [IDS.tool_calls, *TOKENIZER.encode_text(name), IDS.args, *TOKENIZER.encode_text(arguments)]


def accepts(grammar: str, ids: list[int]) -> bool:
    """Whether ``ids`` are a whole answer."""
    matcher = llguidance.LLMatcher(guidance_tokenizer(), grammar)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def random_answer(grammar: str, seed: int, most: int = 400) -> list[int] | None:
    """Tokens drawn evenly from those the grammar allows, as a model that knows nothing would; None where it does not come to an end."""
    matcher = llguidance.LLMatcher(guidance_tokenizer(), grammar)
    draw = random.Random(seed)
    out: list[int] = []
    while len(out) < most:
        mask = matcher.compute_bitmask()
        allowed = [token_id for token_id in range(TOKENIZER.vocab_size) if mask[token_id // 8] >> (token_id % 8) & 1]
        token_id = draw.choice(allowed)
        if token_id == IDS.eos:
            return out
        out.append(token_id)
        assert matcher.consume_token(token_id)
    return None


def test_a_forced_answer_is_one_call_or_several_of_the_schemas() -> None:
    grammar = forced_call_grammar([ADD, REWRITE], ids=IDS)
    right = call_ids("add", '{"a": -7, "b": [true, false]}')
    assert accepts(grammar, right)
    assert accepts(grammar, right + call_ids("rewrite", '{"text": "y z"}') + right)
    for wrong in (
        [],
        TOKENIZER.encode_text("no call"),
        TOKENIZER.encode_text('[TOOL_CALLS]add[ARGS]{"a": 1, "b": []}'),  # tags as text
        call_ids("mul", "{}"),
        call_ids("add", '{"a": 1}'),
        call_ids("add", '{"a": "1", "b": []}'),
        call_ids("add", '{"a":1,"b":[]}'),  # not as the model was trained to write it
        call_ids("rewrite", '{"text": "q"}'),
        [*right, *TOKENIZER.encode_text("done")],
        right[:-1],
    ):
        assert not accepts(grammar, wrong), TOKENIZER.decode(wrong, keep_special=True)


def test_without_parallel_calls_there_is_one() -> None:
    grammar = forced_call_grammar([REWRITE], ids=IDS, parallel=False)
    one = call_ids("rewrite", "{}")
    assert accepts(grammar, one)
    assert not accepts(grammar, one + one)


def test_whatever_is_drawn_from_a_forced_grammar_is_valid_and_mistral_common_agrees() -> None:
    schemas = {entry["function"]["name"]: entry["function"]["parameters"] for entry in (ADD, REWRITE)}
    strict = [tool(name, schema, strict=True) for name, schema in schemas.items()]
    factory = GrammarFactory(mistral_tokenizer())
    request = ChatCompletionRequest(
        messages=[UserMessage(content="x")], tools=[Tool.from_openai(entry) for entry in strict], tool_choice=ToolChoiceEnum.required
    )
    theirs = factory.get_grammar_for_chat_request(request, factory.select_jinja_template())
    assert theirs is not None
    grammar = forced_call_grammar([ADD, REWRITE], ids=IDS)
    answers = [answer for seed in range(40) if (answer := random_answer(grammar, seed)) is not None]
    assert len(answers) > 20, "a random walk seldom comes to an end"
    for ids in answers:
        calls = parse_answer(ids, TOKENIZER).tool_calls
        assert calls
        for call in calls:
            jsonschema.validate(call.parsed(), schemas[call.name])
        assert accepts(theirs, ids), TOKENIZER.decode(ids, keep_special=True)
    assert {call.name for ids in answers for call in parse_answer(ids, TOKENIZER).tool_calls} == set(schemas)


def test_text_is_free_before_calls_of_which_only_strict_ones_follow_their_schema() -> None:
    grammar = free_call_grammar([tool("add", ADD["function"]["parameters"], strict=True), REWRITE], ids=IDS)
    text = TOKENIZER.encode_text("Let me\nsee: 世")
    good = call_ids("add", '{"a": 1, "b": []}')
    loose = call_ids("rewrite", '{"anything": [1, {"x": null}]}')
    for ids in (text, good, loose, text + good + loose):
        assert accepts(grammar, ids)
    for ids in (call_ids("add", '{"a": 1}'), call_ids("rewrite", "[1]"), [*good, *text], call_ids("other", "{}")):
        assert not accepts(grammar, ids)


def test_with_a_form_an_answer_has_it_or_calls() -> None:
    grammar = free_call_grammar([ADD], ids=IDS, answer_schema={"type": "array", "items": {"type": "integer"}})
    assert accepts(grammar, TOKENIZER.encode_text("[1, 2]"))
    assert accepts(grammar, call_ids("add", "{}"))
    assert not accepts(grammar, TOKENIZER.encode_text("text"))
    assert not accepts(grammar, TOKENIZER.encode_text("[1]") + call_ids("add", "{}"))


@pytest.mark.parametrize("parameters", [None, {}, {"properties": {"a": {"type": "integer"}}}, {"type": "object"}])
def test_arguments_are_an_object_whatever_the_definition_leaves_out(parameters: dict[str, Any] | None) -> None:
    grammar = forced_call_grammar([tool("f", parameters)], ids=IDS)
    assert accepts(grammar, call_ids("f", "{}"))
    assert not accepts(grammar, call_ids("f", "3"))


def test_only_strict_definitions_insist_on_what_llguidance_cannot_check() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 3}}}}
    assert accepts(forced_call_grammar([tool("f", schema)], ids=IDS), call_ids("f", '{"a": 1}'))
    strict = forced_call_grammar([tool("f", schema, strict=True)], ids=IDS)
    assert "not" in llguidance.LLMatcher(guidance_tokenizer(), strict).get_error()


def test_a_choice_names_all_tools_or_one() -> None:
    assert chosen_tools([ADD, REWRITE], "required") == [ADD, REWRITE]
    assert chosen_tools([ADD, REWRITE], {"type": "function", "function": {"name": "rewrite"}}) == [REWRITE]
    assert has_strict_tool([ADD, tool("f", {}, strict=True)])
    assert not has_strict_tool([ADD, tool("f", {}, strict=False)])


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([], "required", "there are no tools"),
        ([ADD], {"type": "function", "function": {"name": "mul"}}, "not among the tools"),
        ([ADD], {"type": "function", "function": "add"}, "must be auto"),
        ([ADD], {"type": "custom", "function": {"name": "add"}}, "must be auto"),
        ([ADD], "any", "must be auto"),
        ([ADD], {}, "must be auto"),
    ],
)
def test_other_choices_are_refused(tools: list[dict[str, Any]], choice: Any, words: str) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        chosen_tools(tools, choice)
    assert caught.value.key == "tool_choice"
