"""Random JSON schemas: what a model without any sense writes under them is valid by ``jsonschema``, and it comes to its end.

The set-up: logits are drawn anew for each token (normal, standard deviation 2, temperature 1), so the model has no preference for an end,
and would not know one. For such a model to finish, the schemas bound what can be written: strings have at most 12 characters, arrays 3
elements, numbers both limits, objects no additional properties; white space is bounded by the engine. 256 tokens are allowed, as a user's
default has it. Half of the answers may think first, at most 8 tokens, which count too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.tokenizers import tiny_tokenizer

from ms4_train.chat.parse import parse_answer
from ms4_train.inference.constraints import Constraint, ConstraintCompiler
from ms4_train.inference.sampling import Sampler
from ms4_train.inference.sampling_params import ConstraintSpec, SamplingParams
from ms4_train.inference.thinking import Thought

TOKENIZER = tiny_tokenizer()
IDS = TOKENIZER.ids
COMPILER = ConstraintCompiler(TOKENIZER)
MAX_TOKENS = 256

names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=0, max_size=6)
values = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), names)


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        return {
            "type": "string",
            "pattern": draw(st.sampled_from(["^[a-z]{1,6}$", "^\\d{3}-\\d{4}$", "^(red|green|blue)$", "^[A-Z][a-z]{0,5}$"])),
        }
    least = draw(st.integers(0, 4))
    return {"type": "string", "minLength": least, "maxLength": draw(st.integers(least, 12))}


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    least = draw(st.integers(-1000, 1000))
    return {"type": draw(st.sampled_from(["integer", "number"])), "minimum": least, "maximum": draw(st.integers(least + 1, least + 5000))}


@st.composite
def arrays(draw: st.DrawFn, items: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    least = draw(st.integers(0, 2))
    return {"type": "array", "items": draw(items), "minItems": least, "maxItems": draw(st.integers(least, 3))}


@st.composite
def objects(draw: st.DrawFn, members: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    properties = draw(st.dictionaries(names, members, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


leaves = st.one_of(
    strings(),
    numbers(),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"$ref": "#/$defs/shared"}),
    st.builds(lambda options: {"enum": options}, st.lists(values, min_size=1, max_size=4, unique_by=json.dumps)),
    st.builds(lambda value: {"const": value}, values),
)
schemas = st.builds(
    lambda schema, shared: {**schema, "$defs": {"shared": shared}},
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            arrays(inner), objects(inner), st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3))
        ),
        max_leaves=8,
    ),
    st.one_of(strings(), numbers(), st.just({"type": "boolean"})),
)


@dataclass(eq=False)
class Row:
    params: SamplingParams
    seed: int
    constraint: Constraint | None
    thought: Thought
    prompt_ids: tuple[int, ...] = (1,)
    generated_ids: list[int] = field(default_factory=list)


def answer(schema: dict[str, Any], seed: int, *, thinks: bool, constrained: bool = True) -> tuple[str, bool]:
    """What the model writes, and whether it came to an end."""
    spec = ConstraintSpec("json_schema", json.dumps(schema), after_thinking=thinks)
    params = SamplingParams(temperature=1.0, thinking_budget=8, constraint=spec, max_tokens=MAX_TOKENS)
    row = Row(params, seed, COMPILER.compile(spec) if constrained else None, Thought(IDS, 8))
    sampler = Sampler(vocab_size=TOKENIZER.vocab_size, eos_id=IDS.eos, special=IDS, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    ended = False
    while not ended and len(row.generated_ids) < MAX_TOKENS:
        logits = 2 * torch.randn(1, TOKENIZER.vocab_size, generator=generator)
        token_id = sampler.choose(logits, [row])[0].token_id
        row.generated_ids.append(token_id)
        row.thought.push(token_id)
        ended = token_id == IDS.eos
        if row.constraint is not None:
            row.constraint.accept(token_id)
            ended = row.constraint.is_done
    return parse_answer(row.generated_ids, TOKENIZER).content, ended


def check_schemas(count: int) -> None:
    completed: list[bool] = []

    @settings(
        max_examples=count, derandomize=True, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(schemas, st.integers(0, 2**31), st.booleans())
    def check(schema: dict[str, Any], seed: int, thinks: bool) -> None:
        text, ended = answer(schema, seed, thinks=thinks)
        completed.append(ended)
        if ended:
            jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)

    check()
    assert len(completed) >= count
    assert sum(completed) >= 0.95 * len(completed), f"{sum(completed)} of {len(completed)} answers came to their end"


def test_answers_to_random_schemas_are_valid_and_complete() -> None:
    check_schemas(100)


@pytest.mark.slow
def test_answers_to_a_thousand_random_schemas_are_valid_and_complete() -> None:
    check_schemas(1000)


def test_the_same_model_without_the_form_writes_nothing_valid() -> None:
    for seed in range(5):
        text, _ = answer({"type": "integer"}, seed, thinks=False, constrained=False)
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)
