"""Follows one answer's thinking by token id, and closes it where its budget is spent.

``[THINK]`` opens a thought; ``[/THINK]`` or ``[TOOL_CALLS]`` closes it, as ``ms4_train.chat.parse`` reads the finished answer.
Exercise it: ``pytest tests/ms4_train/inference/test_thinking.py``.
"""

from __future__ import annotations

from typing import Protocol

from ms4_train.inference.request import ThinkingState


class ThinkingIds(Protocol):
    """The control tokens that matter here; ``ms4_train.chat.special_ids.SpecialIds`` has them."""

    @property
    def think(self) -> int:
        """``[THINK]``."""
        ...

    @property
    def end_think(self) -> int:
        """``[/THINK]``."""
        ...

    @property
    def tool_calls(self) -> int:
        """``[TOOL_CALLS]``."""
        ...

    @property
    def eos(self) -> int:
        """The end token, which is part of nothing."""
        ...


class Thought:
    """The thinking of one answer.

    Args:
        ids: control tokens; None for a tokenizer without thinking: then nothing ever is a thought.
        budget: most tokens of thought, tags left out; None is no limit. Several thoughts of one answer share it.

    Attributes:
        state: none so far, open, closed by the model, or forced: closed by the budget.
        tokens: within thoughts so far, tags left out.
    """

    def __init__(self, ids: ThinkingIds | None, budget: int | None) -> None:
        self.state: ThinkingState = "none"
        self.tokens = 0
        self._ids = ids
        self._budget = budget
        # Differs from ``tokens`` by tags inside a thought: a model that repeats [THINK] spends its budget too.
        self._spent = 0

    def push(self, token_id: int) -> None:
        """Take the next token of the answer."""
        ids = self._ids
        if ids is None:
            return
        if self.state != "open":
            if token_id == ids.think:
                self.state = "open"
        elif token_id in (ids.end_think, ids.tool_calls):
            self.state = "forced" if self.forced_token() == token_id else "closed"
        elif token_id != ids.eos:
            self._spent += 1
            self.tokens += token_id != ids.think

    def forced_token(self) -> int | None:
        """``[/THINK]`` where that must be the next token: inside a thought whose budget is spent."""
        if self._budget is None or self.state != "open" or self._spent < self._budget:
            return None
        return self._ids.end_think if self._ids is not None else None
