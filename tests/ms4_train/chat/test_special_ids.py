"""Ids come from the tokenizer file."""

from __future__ import annotations

import pytest
from support.tokenizers import tiny_tokenizer

from ms4_train.chat.special_ids import SpecialIds


def test_every_id_is_the_tag_it_is_named_after() -> None:
    tokenizer = tiny_tokenizer()
    shown = {name: tokenizer.token_text(getattr(tokenizer.ids, name)) for name in SpecialIds.__slots__}
    assert shown == {
        "unk": "<unk>",
        "bos": "<s>",
        "eos": "</s>",
        "pad": "<pad>",
        "begin_inst": "[INST]",
        "end_inst": "[/INST]",
        "begin_system": "[SYSTEM_PROMPT]",
        "end_system": "[/SYSTEM_PROMPT]",
        "begin_tool_results": "[TOOL_RESULTS]",
        "end_tool_results": "[/TOOL_RESULTS]",
        "tool_calls": "[TOOL_CALLS]",
        "args": "[ARGS]",
        "think": "[THINK]",
        "end_think": "[/THINK]",
        "begin_settings": "[MODEL_SETTINGS]",
        "end_settings": "[/MODEL_SETTINGS]",
        "img": "[IMG]",
        "img_break": "[IMG_BREAK]",
        "img_end": "[IMG_END]",
    }


def test_a_missing_tag_is_not_papered_over() -> None:
    def lookup(tag: str) -> int:
        raise ValueError(tag)

    with pytest.raises(ValueError, match="<unk>"):
        SpecialIds.from_lookup(lookup)
