"""The table for people is whole, cites its sources and says what is really sent."""

from __future__ import annotations

from rich.markup import render

from ms4_evals.clients.servers.facts import FACTS
from ms4_evals.clients.servers.kinds import KINDS, describe_kinds


def test_every_kind_has_facts_and_every_fact_a_source():
    assert list(FACTS) == list(KINDS)
    for facts in FACTS.values():
        assert all(text.strip() and not text.endswith(".") for text in (facts.thinking, facts.tokens, facts.know))
        assert facts.sources
        assert all(source.startswith("https://") or "/" in source or source == "run here" for source in facts.sources)


def test_the_table_for_people_is_whole():
    header, *rows = describe_kinds()
    assert [row[0] for row in rows] == list(KINDS)
    assert all(len(row) == len(header) and all(row) for row in rows)
    # The console would take some brackets for marks of its own.
    assert all(render(text).plain == text for row in rows for text in row)


def test_the_table_says_what_is_sent():
    found = dict(describe_kinds()[1:])
    assert "by chat_template_kwargs: {reasoning_effort: ...}\n" in found["transformers"]
    assert "by reasoning_effort\n" in found["vllm"]
    assert "skip_special_tokens: false" in found["sglang"]
    assert "random_seed (below 2^31)" in found["mistral"]
    assert "seed (below 2^32 - 1)" in found["llama.cpp"]
    assert "max_completion_tokens" in found["openai"]
    for name, kind in KINDS.items():
        assert all(f"{key}: " in found[name] for key in kind.plain_sampling)
