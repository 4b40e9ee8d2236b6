"""The llguidance tokenizer against mistral-common's, and texts that must be refused, whoever wrote them."""

from __future__ import annotations

import json

import llguidance
import pytest
from mistral_common.guidance.tokenizer import MistralLLGTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from support.tokenizers import tiny_tokenizer, tokenizer_file

from ms4_train.errors import EngineError
from ms4_train.inference.grammars import MAX_CHOICES, MAX_TEXT_BYTES, _Vocabulary, grammar_text, new_matcher, to_llguidance
from ms4_train.inference.sampling_params import ConstraintKind, ConstraintSpec

TOKENIZER = tiny_tokenizer()
TOKENS = to_llguidance(TOKENIZER)


def matcher(kind: ConstraintKind, text: str) -> llguidance.LLMatcher:
    return new_matcher(TOKENS, grammar_text(ConstraintSpec(kind, text)))


def fits(kind: ConstraintKind, form: str, text: str) -> bool:
    """Whether the whole of ``text`` has the form."""
    one = matcher(kind, form)
    ids = TOKENIZER.encode_text(text)
    return one.try_consume_tokens(ids) == len(ids) and one.is_accepting()


def test_the_vocabulary_is_mistral_commons() -> None:
    wanted = MistralLLGTokenizer(Tekkenizer.from_file(tokenizer_file(400)))
    own = _Vocabulary(TOKENIZER)
    assert own.tokens == wanted.tokens
    assert own.special_token_ids == wanted.special_token_ids
    assert own.eos_token_id == wanted.eos_token_id
    assert own("some text") == wanted("some text")


def test_a_text_that_cannot_be_encoded_is_spelled_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> list[int]:
        raise ValueError(text)

    monkeypatch.setattr(TOKENIZER, "encode_text", fail)
    ids = _Vocabulary(TOKENIZER)("aé")
    assert b"".join(TOKENIZER.token_bytes(token_id) for token_id in ids) == "aé".encode()


@pytest.mark.parametrize(
    "option", ["yes", "", 'say "no"', "a\\b", "two\nlines", "日本 😀", "\x00\x7f\u2028", "\U000e0001", "/x/ | <[2]> %json {}", "#a //b"]
)
def test_choices_are_taken_literally(option: str) -> None:
    form = json.dumps([option, "other"])
    assert fits("choice", form, option)
    assert fits("choice", form, "other")
    assert not fits("choice", form, option + "another")


def test_control_tokens_are_tokens_and_their_spelling_is_text() -> None:
    ids = TOKENIZER.ids
    grammar = f'start: <[{ids.tool_calls}]> "f" <[{ids.args}]> %json {{"type": "object"}}'
    spelled = [ids.tool_calls, *TOKENIZER.encode_text("f"), ids.args, *TOKENIZER.encode_text("{}")]
    assert matcher("lark", grammar).try_consume_tokens(spelled) == len(spelled)
    assert matcher("lark", grammar).try_consume_tokens(TOKENIZER.encode_text("[TOOL_CALLS]")) == 0


def test_whitespace_is_free_but_bounded() -> None:
    schema = '{"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}, "required": ["a"]}'
    for text in ('{"a":[1,2]}', '{"a": [1, 2]}', json.dumps({"a": [1, 2]}, indent=4)):
        assert fits("json_schema", schema, text)
    assert not fits("json_schema", schema, "{" + " \n" * 40 + '"a":[1]}')


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("json_schema", "{", "invalid JSON"),
        ("json_schema", "[1]", "object"),
        ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000, "deep"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"x-guidance": {"lenient": true}, "type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"not": {"type": "string"}}', "not"),
        ("json_schema", "false", "nothing"),
        ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "minimum"),
        ("json_schema", '{"$ref": "http://localhost/x.json"}', "not fetch"),
        ("json_schema", '{"$ref": "#"}', "no answer has this form"),
        ("json_schema", '{"type": "string", "pattern": "("}', "unclosed"),
        ("json_schema", json.dumps({"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(4)]} for i in range(12)]}), "too large"),
        ("regex", "(a", "unclosed"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "(" * 5000 + ")" * 5000, "regex"),
        ("lark", "start: (", "1(9)"),
        ("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "deeply nested"),
        ("lark", "start: <[999999]>", "Token range"),
        ("lark", "start: a\na: a", "no answer has this form"),
        ("choice", "[]", "at least one"),
        ("choice", '["a", 1]', "strings"),
        ("choice", '{"a": 1}', "list"),
        ("choice", json.dumps([str(i) for i in range(MAX_CHOICES + 1)]), "choices"),
        ("regex", "a" * (MAX_TEXT_BYTES + 1), "longer"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_a_reason_on_one_line(kind: ConstraintKind, text: str, reason: str) -> None:
    with pytest.raises(EngineError) as caught:
        matcher(kind, text)
    assert caught.value.key == "constraint"
    assert reason in caught.value.message
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "(a|b)*a(a|b){400}"),
        ("regex", "((a{1,1000}){1,1000}){1,1000}"),
        ("json_schema", json.dumps({"type": "string", "minLength": 10**6, "maxLength": 10**8})),
        ("json_schema", json.dumps({"enum": [f"value-{i}" for i in range(4000)]})),
        ("json_schema", json.dumps({"type": "integer", "multipleOf": 7919})),
        ("choice", json.dumps([f"value-{i}" for i in range(MAX_CHOICES)])),
    ],
)
def test_large_but_harmless_forms_are_accepted(kind: ConstraintKind, text: str) -> None:
    assert not matcher(kind, text).is_error()


def test_the_schema_true_is_any_json() -> None:
    assert fits("json_schema", "true", '[1, "a", null]')
    assert not fits("json_schema", "true", "[1,")


def test_a_tokenizer_without_bytes_is_refused() -> None:
    class Bare:
        vocab_size = 10

    with pytest.raises(EngineError, match="bytes"):
        to_llguidance(Bare())  # pyright: ignore[reportArgumentType]
