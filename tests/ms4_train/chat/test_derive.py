"""Derived tokenizers: golden ids of spec 4.1, reduced vocabularies, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tokenizers import full_tokenizer, tiny_tokenizer, tokenizer_file

from ms4_train.chat import ChatTokenizer, derive_tokenizer
from ms4_train.chat.derive import NAMED_SPECIALS
from ms4_train.errors import StorageError, TokenizerError

# Spec 4.1: ids of the release's file for the user message "Hi" without a system prompt.
GOLDEN_NONE = [1, 36, 19227, 80277, 1302, 13196, 1609, 1449, 2811, 1429, 17670, 46005, 37, 3, 37133, 4]


def test_full_tokenizer_gives_the_golden_ids_in_both_modes() -> None:
    tokenizer = full_tokenizer()
    assert tokenizer.vocab_size == 131072
    assert tokenizer.num_special_tokens == 1000
    assert tokenizer.encode_chat([{"role": "user", "content": "Hi"}]) == GOLDEN_NONE
    assert tokenizer.encode_chat([{"role": "user", "content": "Hi"}], reasoning_effort=None) == GOLDEN_NONE
    high = [24871 if token == 17670 else token for token in GOLDEN_NONE]
    assert tokenizer.encode_chat([{"role": "user", "content": "Hi"}], reasoning_effort="high") == high


@pytest.mark.slow
def test_full_tokenizer_has_the_text_ids_of_the_file_it_comes_from() -> None:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    shipped = MistralTokenizer.v3(is_tekken=True, is_mm=True).instruct_tokenizer.tokenizer
    for text in ["Hello, world!", "Größe 日本語 😀", "def f(x):\n    return 1234\n", "  spaces  \n\n"]:
        assert full_tokenizer().encode_text(text) == shipped.encode(text, bos=False, eos=False)


@pytest.mark.parametrize("num_ranks", [256, 400])
def test_reduced_tokenizer_keeps_named_ids_and_reads_any_text(num_ranks: int) -> None:
    tokenizer = tiny_tokenizer(num_ranks)
    assert tokenizer.vocab_size == num_ranks + 38
    for token_id, tag in NAMED_SPECIALS.items():
        assert tokenizer.token_text(token_id) == tag
    assert (tokenizer.think_id, tokenizer.end_think_id, tokenizer.ids.args, tokenizer.pad_id) == (34, 35, 32, 11)
    text = "Straße 日本 😀 \x00 7*3+8"
    ids = tokenizer.encode_text(text)
    assert tokenizer.decode(ids) == text
    assert all(38 <= token < tokenizer.vocab_size for token in ids)


def test_reduced_ids_are_the_merges_that_the_full_file_makes_first() -> None:
    # Ranks are merge order, so a text whose full ids all lie below the cut keeps its tokens.
    full, tiny = full_tokenizer(), tiny_tokenizer(400)
    assert [token - 1000 for token in full.encode_text(" the in")] == [token - 38 for token in tiny.encode_text(" the in")]


def test_a_folder_gets_a_file_named_tekken(tmp_path: Path) -> None:
    path = derive_tokenizer(tmp_path / "new" / "folder", num_ranks=300)
    assert path == tmp_path / "new" / "folder" / "tekken.json"
    assert ChatTokenizer.from_file(path.parent).vocab_size == 338
    assert json.loads(path.read_text())["config"]["version"] == "v15"


@pytest.mark.parametrize("num_ranks", [0, 255, 131073])
def test_impossible_sizes_are_refused(tmp_path: Path, num_ranks: int) -> None:
    with pytest.raises(TokenizerError, match="256"):
        derive_tokenizer(tmp_path / "tekken.json", num_ranks=num_ranks)
    assert not list(tmp_path.iterdir())


def test_a_name_that_mistral_common_would_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="tekken"):
        derive_tokenizer(tmp_path / "tokenizer.json", num_ranks=300)


def test_unwritable_target_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        derive_tokenizer(tmp_path / "file" / "tekken.json", num_ranks=300)


def test_mistral_common_reads_the_file_by_itself() -> None:
    from mistral_common.protocol.instruct.messages import UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    theirs = MistralTokenizer.from_file(tokenizer_file(400))
    ids = theirs.encode_chat_completion(ChatCompletionRequest(messages=[UserMessage(content="Hi")])).tokens
    assert tiny_tokenizer(400).encode_chat([{"role": "user", "content": "Hi"}]) == ids
