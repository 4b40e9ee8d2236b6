"""The generated task: worked chains are right by an independent evaluation, and the splits never meet."""

import ast
import json
import operator

import pytest
from support.tokenizers import tiny_tokenizer

from ms4_evals.tasks import arithmetic
from ms4_train.errors import EvaluationError

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def value_of_nested(chain: str, modulus: int) -> int:
    """Python's own parser works the chain, forced to go from left to right by brackets; only the end is reduced."""
    nested = chain[0]
    for sign, digit in zip(chain[1::2], chain[2::2], strict=True):
        nested = f"({nested}{sign}{digit})"

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int)
            return node.value
        assert isinstance(node, ast.BinOp)
        return OPERATIONS[type(node.op)](value(node.left), value(node.right))

    return value(ast.parse(nested, mode="eval").body) % modulus


def plain_chain(kind: str, question: str) -> str:
    spec = arithmetic.KINDS[kind]
    spelled = dict(zip(spec.operands + spec.operators, "0123456789+-*", strict=True))
    return "".join(spelled[symbol] for symbol in question.removesuffix(spec.suffix))


@pytest.mark.parametrize("kind", arithmetic.KINDS)
def test_answers_equal_an_independent_evaluation(kind):
    spec = arithmetic.KINDS[kind]
    for problem in arithmetic.make_problems(kind, 200, seed=3):
        chain = plain_chain(kind, problem.question)
        ordered = chain if spec.leftmost_first else chain[::-1]
        assert problem.answer == value_of_nested(ordered, spec.modulus)
        last = problem.thinking.split(" ")[-1]
        assert last.endswith(f"={problem.answer}")
        assert len(problem.thinking.split(" ")) == arithmetic.DEFAULT_STEPS


def test_the_example_of_the_documentation():
    problem = arithmetic.work_out(arithmetic.KINDS["digits"], "7*3+8-5*9+2-4")
    assert problem.thinking == "7*3=1 1+8=9 9-5=4 4*9=6 6+2=8 8-4=4"
    assert problem.answer == 4
    letters = arithmetic.work_out(arithmetic.KINDS["letters"], "7*3+8-5")
    assert letters.question.startswith("hXdPiMf mod 10")


@pytest.mark.parametrize("steps", [2, 6])
def test_training_and_heldout_never_share_a_chain(steps):
    train = {plain_chain("digits", p.question) for seed in (0, 1) for p in arithmetic.make_problems("digits", 1500, seed, steps=steps)}
    for kind in arithmetic.KINDS:
        heldout = {plain_chain(kind, p.question) for p in arithmetic.make_problems(kind, 300, 0, "heldout", steps=steps)}
        assert not train & heldout
        assert all(arithmetic.split_of(chain) == "heldout" for chain in heldout)


def test_without_the_split_two_draws_do_meet():
    """The negative control: with two steps the space is small enough that draws of one split overlap."""
    first = {p.question for p in arithmetic.make_problems("digits", 1500, 0, steps=2)}
    second = {p.question for p in arithmetic.make_problems("digits", 1500, 1, steps=2)}
    assert first & second


@pytest.mark.parametrize("ranks", [260, 512, 1000])
def test_every_symbol_is_one_token_of_a_small_tokenizer(ranks):
    """Kinds then differ in symbols and not in length or alignment, so that a small adapter can carry the skill over."""
    tokenizer = tiny_tokenizer(ranks)
    for kind in arithmetic.KINDS.values():
        for chain in ("7*3+8-5*9+2-4", *(f"{a}{sign}{b}" for sign in "+-*" for a in range(10) for b in range(10))):
            question = arithmetic.work_out(kind, chain).question.removesuffix(kind.suffix)
            assert len(tokenizer.encode_text(question)) == len(chain), question


def test_problems_are_distinct_and_reproducible():
    once = arithmetic.make_problems("modulus7", 500, 9)
    assert once == arithmetic.make_problems("modulus7", 500, 9)
    assert len({p.question for p in once}) == 500
    assert once != arithmetic.make_problems("modulus7", 500, 10)


def test_no_single_answer_is_a_good_guess():
    """Guessing the commonest answer scores low, so a score says something about working the chain."""
    for kind, spec in arithmetic.KINDS.items():
        answers = [p.answer for p in arithmetic.make_problems(kind, 2000, 0)]
        assert max(map(answers.count, range(spec.modulus))) / len(answers) < 0.25


@pytest.mark.parametrize(("kind", "count", "steps"), [("nope", 1, 6), ("digits", 300, 1), ("digits", 1, 0)])
def test_impossible_requests_are_refused(kind, count, steps):
    with pytest.raises(EvaluationError) as caught:
        arithmetic.make_problems(kind, count, 0, steps=steps)
    assert caught.value.fix


def test_training_rows(tmp_path):
    path = arithmetic.write_training_rows("letters", 100, 5, tmp_path / "rows.jsonl", direct_share=0.25)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    problems = arithmetic.make_problems("letters", 100, 5)
    assert [row["messages"][0]["content"] for row in rows] == [p.question for p in problems]
    assert sum(row["reasoning_effort"] == "none" for row in rows) == 25
    for row, problem in zip(rows, problems, strict=True):
        content = row["messages"][1]["content"]
        if row["reasoning_effort"] == "none":
            assert content == f"\\boxed{{{problem.answer}}}"
        else:
            assert content == [
                {"type": "thinking", "thinking": problem.thinking},
                {"type": "text", "text": f"\\boxed{{{problem.answer}}}"},
            ]


def test_a_share_outside_the_unit_interval_is_refused(tmp_path):
    with pytest.raises(EvaluationError):
        arithmetic.write_training_rows("digits", 1, 0, tmp_path / "rows.jsonl", direct_share=1.5)
    assert not list(tmp_path.iterdir())
