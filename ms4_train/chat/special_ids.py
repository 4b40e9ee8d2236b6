"""Ids of the special tokens that the chat format of version 15 uses. Exercise it: ``pytest tests/ms4_train/chat/test_special_ids.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """One id per tag; the values come from the tokenizer file, never from a table of ours."""

    unk: int
    bos: int
    eos: int
    pad: int
    begin_inst: int
    end_inst: int
    begin_system: int
    end_system: int
    begin_tool_results: int
    end_tool_results: int
    tool_calls: int
    args: int
    think: int
    end_think: int
    begin_settings: int
    end_settings: int
    img: int
    img_break: int
    img_end: int

    @classmethod
    def from_lookup(cls, lookup: Callable[[str], int]) -> SpecialIds:
        """Resolve every tag with ``lookup`` (tag text -> id).

        Raises:
            ValueError: what ``lookup`` raises for a tag that it does not know.
        """
        return cls(
            unk=lookup("<unk>"),
            bos=lookup("<s>"),
            eos=lookup("</s>"),
            pad=lookup("<pad>"),
            begin_inst=lookup("[INST]"),
            end_inst=lookup("[/INST]"),
            begin_system=lookup("[SYSTEM_PROMPT]"),
            end_system=lookup("[/SYSTEM_PROMPT]"),
            begin_tool_results=lookup("[TOOL_RESULTS]"),
            end_tool_results=lookup("[/TOOL_RESULTS]"),
            tool_calls=lookup("[TOOL_CALLS]"),
            args=lookup("[ARGS]"),
            think=lookup("[THINK]"),
            end_think=lookup("[/THINK]"),
            begin_settings=lookup("[MODEL_SETTINGS]"),
            end_settings=lookup("[/MODEL_SETTINGS]"),
            img=lookup("[IMG]"),
            img_break=lookup("[IMG_BREAK]"),
            img_end=lookup("[IMG_END]"),
        )
