"""Constrained answers: against ``re`` and ``json``, with thoughts, at their ends, and when a grammar fails on the way.

Random schemas are in ``test_constraints_schemas.py``.
"""

from __future__ import annotations

import json
import re
import threading

import numpy as np
import pytest
import torch
from support.tokenizers import tiny_tokenizer

from ms4_train.errors import EngineError
from ms4_train.inference import constraints as module
from ms4_train.inference.constraints import MAX_FORMS, Constraint, ConstraintCompiler
from ms4_train.inference.sampling_params import ConstraintKind, ConstraintSpec

TOKENIZER = tiny_tokenizer()
IDS = TOKENIZER.ids
COMPILER = ConstraintCompiler(TOKENIZER)
V = TOKENIZER.vocab_size
# Accepted, and soon more than the parser's limit of items.
EXPLODING = "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(30)) + '\na30: "x"'


def compiled(kind: ConstraintKind, text: str = "", *, after_thinking: bool = False) -> Constraint:
    return COMPILER.compile(ConstraintSpec(kind, text, after_thinking=after_thinking))


def accept(form: Constraint, text: str) -> None:
    for token_id in TOKENIZER.encode_text(text):
        assert form.allowed()[token_id], TOKENIZER.token_text(token_id)
        form.accept(token_id)


def allowed_ids(form: Constraint) -> set[int]:
    return set(np.flatnonzero(form.allowed()).tolist())


def random_answer(form: Constraint, seed: int, longest: int = 60) -> list[int] | None:
    """A random walk through the allowed tokens; None if it has not ended in time."""
    generator = torch.Generator().manual_seed(seed)
    taken: list[int] = []
    while not form.is_done:
        choices = sorted(allowed_ids(form))
        token_id = choices[int(torch.randint(len(choices), (1,), generator=generator))]
        form.accept(token_id)
        if token_id == IDS.eos:
            break
        taken.append(token_id)
        if len(taken) == longest:
            return None
    return taken


@pytest.mark.parametrize(
    "pattern", [r"ab?c", r"[a-z]{2,5}(-[0-9]+)?", r"(yes|no|maybe)!*", r'"[^"\\]{0,8}"', r"[0-9]{4}-[0-9]{2}", r"[äöü日本]{1,3}"]
)
def test_answers_of_a_pattern_match_it_for_re(pattern: str) -> None:
    finished = 0
    for seed in range(12):
        answer = random_answer(compiled("regex", pattern), seed)
        if answer is not None:
            finished += 1
            assert re.fullmatch(pattern, TOKENIZER.decode(answer)), TOKENIZER.decode(answer)
    assert finished >= 10


def test_the_end_is_allowed_exactly_where_the_form_is_complete() -> None:
    form = compiled("regex", "ab+")
    assert IDS.eos not in allowed_ids(form)
    accept(form, "a")
    assert IDS.eos not in allowed_ids(form)
    accept(form, "b")
    assert IDS.eos in allowed_ids(form)
    assert not form.is_done
    form.accept(IDS.eos)
    assert form.is_done
    assert allowed_ids(form) == {IDS.eos}


def test_a_form_that_leaves_only_the_end_is_done() -> None:
    for kind, text, answer in (("json_object", "", '{"a": [1]}'), ("choice", '["yes", "no"]', "no"), ("regex", "ab", "ab")):
        form = compiled(kind, text)  # pyright: ignore[reportArgumentType]
        accept(form, answer[:-1])
        assert not form.is_done
        accept(form, answer[-1])
        assert form.is_done
        assert allowed_ids(form) == {IDS.eos}


def test_any_object_is_a_json_object() -> None:
    for text in ("{}", '{"a": {"b": [true, null, -1.5e3, "x\\n"]}, "": 1}'):
        accept(compiled("json_object"), text)
    form = compiled("json_object")
    assert not form.allowed()[TOKENIZER.encode_text("[")[0]]


def test_a_thought_may_come_first_and_the_form_waits_for_its_end() -> None:
    form = compiled("regex", "ab", after_thinking=True)
    letter = TOKENIZER.encode_text("a")[0]
    assert allowed_ids(form) == {IDS.think, letter}
    form.accept(IDS.think)
    for token_id in TOKENIZER.encode_text("any { text }"):
        assert form.allowed()[token_id]
        form.accept(token_id)
    assert not form.allowed()[IDS.eos], "an answer that ends in its thought would not have its form"
    assert not form.allowed()[IDS.tool_calls]
    assert not form.is_done
    form.accept(IDS.end_think)
    assert allowed_ids(form) == {letter}, "there is no second thought"
    accept(form, "ab")
    assert form.is_done


def test_without_a_thought_the_form_holds_from_the_first_token() -> None:
    form = compiled("regex", "ab", after_thinking=True)
    accept(form, "a")
    assert IDS.think not in allowed_ids(form)
    strict = compiled("regex", "ab")
    assert IDS.think not in allowed_ids(strict)
    with pytest.raises(EngineError):
        strict.accept(IDS.think)


def test_a_call_closes_the_thought_where_the_form_begins_with_one() -> None:
    form = compiled("lark", f'start: <[{IDS.tool_calls}]> "f" <[{IDS.args}]> "{{}}"', after_thinking=True)
    form.accept(IDS.think)
    form.accept(TOKENIZER.encode_text("a")[0])
    assert form.allowed()[IDS.tool_calls]
    form.accept(IDS.tool_calls)
    accept(form, "f")
    assert allowed_ids(form) == {IDS.args}


def test_copies_and_answers_of_one_form_are_independent() -> None:
    form = compiled("regex", "abc")
    other = compiled("regex", "abc")
    accept(form, "ab")
    fresh = form.copy()
    for one in (other, fresh):
        accept(one, "abc")
    accept(form, "c")
    assert form.is_done
    assert other.is_done
    assert fresh.is_done


def test_a_token_that_may_not_come_is_refused() -> None:
    form = compiled("regex", "ab")
    with pytest.raises(EngineError) as caught:
        form.accept(TOKENIZER.encode_text("b")[0])
    assert caught.value.key == "constraint"


def test_a_grammar_that_fails_on_the_way_fails_its_own_answer() -> None:
    form = compiled("lark", EXPLODING)

    def go_on() -> None:
        for _ in range(50):
            mask = form.allowed()
            assert mask.any(), "the sampler needs a token to choose"
            token_id = int(np.flatnonzero(mask)[0])
            assert token_id != IDS.eos
            form.accept(token_id)

    with pytest.raises(EngineError, match="Too many items"):
        go_on()
    assert not form.is_done
    assert form.allowed().sum() == V - 1, "an answer that failed must not look finished, yet the sampler needs a token"
    assert not form.allowed()[IDS.eos]
    with pytest.raises(EngineError, match="Too many items"):
        form.accept(5)
    accept(compiled("regex", "ab"), "ab")


def test_a_lexer_that_fills_up_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer adds states to the lexer that the form's answers share. Negative control: without renewals answers fail."""
    monkeypatch.setitem(module.new_matcher.__globals__["_LIMITS"], "max_lexer_states", 400)
    spec = ConstraintSpec("regex", "((a|b)*a(a|b){12}c)+", after_thinking=False)

    def answers() -> None:
        compiler = ConstraintCompiler(TOKENIZER)
        for seed in range(12):
            random_answer(compiler.compile(spec), seed, longest=60)

    answers()
    monkeypatch.setattr(module, "MAX_RENEWALS", 0)
    with pytest.raises(EngineError, match="too many states"):
        answers()


def test_forms_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ConstraintSpec] = []
    original = module.grammar_text

    def count(spec: ConstraintSpec) -> str:
        made.append(spec)
        return original(spec)

    monkeypatch.setattr(module, "grammar_text", count)
    compiler = ConstraintCompiler(TOKENIZER)
    specs = [ConstraintSpec("regex", f"a{{{number}}}") for number in range(1, MAX_FORMS + 2)]
    compiler.compile(specs[0])
    compiler.compile(specs[0])
    assert made == specs[:1]
    for spec in specs[1:]:
        compiler.compile(spec)
    compiler.compile(specs[-1])
    assert made == specs
    compiler.compile(specs[0])
    assert made == [*specs, specs[0]]


def test_several_threads_may_compile_and_use_the_same_forms() -> None:
    compiler = ConstraintCompiler(TOKENIZER)
    answers: list[str] = []

    def work(seed: int) -> None:
        for number in range(5):
            answer = random_answer(
                compiler.compile(ConstraintSpec("choice", json.dumps(["yes", "no", f"n{number}"]), False)), 10 * seed + number
            )
            answers.append(TOKENIZER.decode(answer or []))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    assert set(answers) <= {"yes", "no", *(f"n{number}" for number in range(5))}


def test_a_tokenizer_that_cannot_constrain_still_makes_a_compiler() -> None:
    class Bare:
        eos_id = 2
        vocab_size = 10

    compiler = ConstraintCompiler(Bare())
    with pytest.raises(EngineError):
        compiler.compile(ConstraintSpec("json_object"))
