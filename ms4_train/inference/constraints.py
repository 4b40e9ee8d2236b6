"""Answers of a given form: which tokens may come next, by llguidance.

``ConstraintCompiler`` makes a ``Constraint`` per answer; the sampler asks it for the tokens that are ``allowed``, the engine tells it the
token that was taken (``accept``). With a thought first the form waits: it holds from the first token after ``[/THINK]``, or from the first
token at all where the model does not think. The end token is allowed exactly where the form is complete, so not in a thought either.

A constraint whose grammar fails on the way (llguidance's limits) fails its own answer: ``accept`` raises.
Exercise it: ``pytest tests/ms4_train/inference/test_constraints.py``.

Shape suffix: v vocabulary.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ms4_train.errors import EngineError
from ms4_train.inference.grammars import GrammarTokenizer, grammar_text, new_matcher, one_line, refused, to_llguidance
from ms4_train.inference.sampling_params import ConstraintSpec
from ms4_train.inference.thinking import ThinkingIds

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_FORMS = 64
"""Compiled forms that are kept, the last used ones. A form's lexer grows with use, to llguidance's limit of states."""
MAX_RENEWALS = 4
"""How often one answer may begin a new lexer before it fails."""


class _Form:
    """A compiled specification, which its answers share."""

    def __init__(self, spec: ConstraintSpec, tokens: LLTokenizer, eos_id: int, ids: ThinkingIds | None) -> None:
        self.eos_id = eos_id
        self.vocab_size = tokens.vocab_size
        self.ids = ids if spec.after_thinking else None
        self._tokens = tokens
        self._grammar = grammar_text(spec)
        self._lock = threading.Lock()
        self._matcher = new_matcher(tokens, self._grammar)
        self._generation = 0
        self.first_v = mask_of(self._matcher, self.vocab_size)
        self.thinking_v = np.ones(self.vocab_size, dtype=bool)
        self.thinking_v[eos_id] = False
        if self.ids is not None:
            # [TOOL_CALLS] ends a thought too, so it may come where the form begins with it.
            self.thinking_v[self.ids.tool_calls] = self.first_v[self.ids.tool_calls]

    def start(self) -> tuple[LLMatcher, int]:
        """A matcher at the beginning, and the generation of its lexer."""
        with self._lock:
            return self._matcher.deep_copy(), self._generation

    def renew(self, generation: int) -> tuple[LLMatcher, int]:
        """Likewise with a newer lexer than ``generation``: copies share theirs, which fills up in the course of many answers."""
        with self._lock:
            if self._generation == generation:
                self._matcher = new_matcher(self._tokens, self._grammar)
                self._generation += 1
            return self._matcher.deep_copy(), self._generation


def mask_of(matcher: LLMatcher, vocab_size: int) -> NDArray[np.bool_]:
    """The tokens that a matcher lets come next, [v]."""
    bits = np.zeros((vocab_size + 31) // 32, dtype=np.int32)
    matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
    return np.unpackbits(bits.view(np.uint8), bitorder="little")[:vocab_size].view(np.bool_)


class Constraint:
    """The form of one answer, and how far the answer has come in it; made by ``ConstraintCompiler``."""

    def __init__(self, form: _Form) -> None:
        self._form = form
        self._matcher, self._generation = form.start()
        self._renewals = 0
        self._taken: list[int] = []
        self._may_think = form.ids is not None
        self._thinks = False
        self._ended = False
        self._error: EngineError | None = None

    def copy(self) -> Constraint:
        """The same form, at its beginning."""
        return Constraint(self._form)

    @property
    def is_done(self) -> bool:
        """Whether the answer is complete and only the end token could follow."""
        return self._ended or (not self._thinks and self._error is None and self._matcher.is_stopped())

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, [v]; not to be written to.

        Where the grammar fails, all but the end token: then ``accept`` raises, whichever token is taken.
        """
        form = self._form
        if self._thinks:
            return form.thinking_v
        if self._ended:
            return np.arange(form.vocab_size) == form.eos_id
        allowed_v = form.first_v if not self._taken and self._error is None else self._next()
        if self._may_think and form.ids is not None:
            allowed_v = allowed_v.copy()
            allowed_v[form.ids.think] = True
        return allowed_v

    def _next(self) -> NDArray[np.bool_]:
        """What the grammar lets come next, [v]; where it fails, see ``allowed``."""
        form = self._form
        if self._error is None:
            allowed_v = mask_of(self._matcher, form.vocab_size)
            if self._matcher.is_error() and self._replay():
                allowed_v = mask_of(self._matcher, form.vocab_size)
            if allowed_v.any() and not self._matcher.is_error():
                return allowed_v
            self._error = refused(one_line(self._matcher.get_error()))
        return np.arange(form.vocab_size) != form.eos_id

    def accept(self, token_id: int) -> None:
        """Take the token that was chosen.

        Raises:
            EngineError: ``constraint``: the grammar failed, or does not let the token come here.
        """
        ids = self._form.ids
        if self._may_think and ids is not None:
            self._may_think = False
            if token_id == ids.think:
                self._thinks = True
                return
        if self._thinks and ids is not None:
            self._thinks = token_id not in (ids.end_think, ids.tool_calls)
            if self._thinks or token_id == ids.end_think:
                return
        if self._error is None and not self._consume(token_id):
            self._error = refused(one_line(self._matcher.get_error()))
        if self._error is not None:
            raise self._error
        self._taken.append(token_id)
        self._ended = token_id == self._form.eos_id

    def _consume(self, token_id: int) -> bool:
        """Move on; a matcher never leaves an error, so another one tells whether it was the token's fault."""
        return self._matcher.consume_token(token_id) or (self._replay() and self._matcher.consume_token(token_id))

    def _replay(self) -> bool:
        """Begin again with another lexer and go to the same place; returns whether that worked."""
        if self._renewals == MAX_RENEWALS:
            return False
        self._renewals += 1
        self._matcher, self._generation = self._form.renew(self._generation)
        return self._matcher.consume_tokens(self._taken)


class ConstraintCompiler:
    """Compiles specifications for one tokenizer and keeps the last ones; may be used by several threads.

    Args:
        tokenizer: needs what ``grammars.GrammarTokenizer`` says once something is compiled; its ``ids``, where it has them, tell thoughts.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer: GrammarTokenizer = tokenizer
        self._ids: ThinkingIds | None = getattr(tokenizer, "ids", None)
        self._tokens: LLTokenizer | None = None
        self._forms: OrderedDict[ConstraintSpec, _Form] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, spec: ConstraintSpec) -> Constraint:
        """The constraint of one answer, at its beginning.

        Raises:
            EngineError: ``constraint``: the specification cannot be used; the message gives the reason.
            MissingDependencyError: llguidance is not installed.
        """
        with self._lock:
            form = self._forms.get(spec)
            tokens = self._tokens = self._tokens or to_llguidance(self._tokenizer)
        # Outside the lock: a large schema takes half a second, in which others may go on.
        form = form or _Form(spec, tokens, self._tokenizer.eos_id, self._ids)
        with self._lock:
            self._forms[spec] = form
            self._forms.move_to_end(spec)
            while len(self._forms) > MAX_FORMS:
                self._forms.popitem(last=False)
        return Constraint(form)
