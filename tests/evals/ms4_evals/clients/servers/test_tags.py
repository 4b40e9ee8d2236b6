"""Thinking between tags, told from the answer; where tags are tokens, the engine is the oracle."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizers import tiny_tokenizer

from ms4_evals.clients.servers.tags import Split, split_thinking
from ms4_train.chat import parse_answer

CASES = {
    "": ("", "", False),
    "\\boxed{3}": ("", "\\boxed{3}", False),
    "[THINK]2+1[/THINK]\\boxed{3}": ("2+1", "\\boxed{3}", False),
    "\n [THINK]2+1[/THINK]\n\n3": ("2+1", "\n\n3", False),
    "<think>\n2+1\n</think>\n\n3": ("\n2+1\n", "\n\n3", False),
    # Unterminated: max_tokens ended it, or the model never stopped.
    "[THINK]": ("", "", True),
    "[THINK]2+1": ("2+1", "", True),
    "[THINK]2+1 [/THIN": ("2+1 [/THIN", "", True),
    "<think>2+1": ("2+1", "", True),
    # Doubled, stray and further tags, as the engine has them.
    "[THINK]a[THINK]b[/THINK]c": ("ab", "c", False),
    "[THINK]a[/THINK]b[/THINK]c": ("a", "bc", False),
    "[THINK]a[/THINK]b[THINK]c[/THINK]d": ("ac", "bd", False),
    "[THINK]a[/THINK]b[THINK]c": ("ac", "b", True),
    # The other family within a thought or an answer is text.
    "[THINK]a<think>b</think>[/THINK]c": ("a<think>b</think>", "c", False),
    "<think>a[/THINK]b</think>c": ("a[/THINK]b", "c", False),
    # A mention is no tag.
    "Models write [THINK] first.": ("", "Models write [THINK] first.", False),
    "Answer: 3 [THINK]so[/THINK]": ("", "Answer: 3 [THINK]so[/THINK]", False),
    "a[/THINK]b": ("", "a[/THINK]b", False),
    "[/THINK]b": ("", "[/THINK]b", False),
    "the tags <think> and </think>\nare tags": ("", "the tags <think> and </think>\nare tags", False),
    "print('</think>') # 3": ("", "print('</think>') # 3", False),
    "[think]a[/think]b": ("", "[think]a[/think]b", False),
    "[THINK": ("", "[THINK", False),
    # The template wrote the opening tag into the prompt.
    "2+1\n</think>\n\n3": ("2+1\n", "\n\n3", False),
    "2+1</think>\n3": ("2+1", "\n3", False),
    "2+1</think>": ("2+1", "", False),
}


@pytest.mark.parametrize(("text", "parts"), CASES.items(), ids=[repr(text) for text in CASES])
def test_known_forms(text, parts):
    assert split_thinking(text) == Split(*parts)


PIECES = st.lists(st.sampled_from(["[THINK]", "[/THINK]", "a", "\\boxed{5}", " ", "\n", "[", "THINK]", "/"]), max_size=12)


@settings(deadline=None)  # the first example loads the tokenizer
@given(PIECES)
def test_a_text_that_begins_with_a_thought_is_read_as_the_engine_reads_its_tokens(pieces):
    tokenizer = tiny_tokenizer()
    tags = {"[THINK]": tokenizer.think_id, "[/THINK]": tokenizer.end_think_id}
    pieces = ["[THINK]", *pieces]
    # Letters that happen to spell a tag are none to the engine, which sees tokens; in text nobody can tell.
    text = "".join(pieces)
    if text.count("[THINK]") != pieces.count("[THINK]") or text.count("[/THINK]") != pieces.count("[/THINK]"):
        return
    ids = [token for piece in pieces for token in ([tags[piece]] if piece in tags else tokenizer.encode_text(piece))]
    oracle = parse_answer(ids, tokenizer)
    assert split_thinking(text) == Split(oracle.thinking, oracle.content, oracle.thinking_state == "unterminated")


@given(st.text(alphabet="abTHINK[]/<> \n", max_size=40))
def test_nothing_but_tags_is_ever_lost(text):
    found = split_thinking(text)
    kept = len(found.thinking) + len(found.answer)
    tags = sum(text.count(tag) * len(tag) for tag in ("[THINK]", "[/THINK]"))
    blanks = len(text) - len(text.lstrip())
    assert kept >= len(text) - tags - blanks
    if not text.lstrip().startswith("[THINK]"):
        assert found == Split("", text, False)
