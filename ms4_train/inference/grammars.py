"""From a constraint's specification to a grammar that llguidance has accepted, under bounds that hold against hostile texts.

Bounds: ``MAX_TEXT_BYTES`` of text, and llguidance's own limits. At its stated speeds they keep the construction near 20 ms of regular
expressions and half a second for the largest schema, and one token's mask below some 20 ms. What it cannot express is refused with its
reason: it never falls back to a weaker form (a schema's ``x-guidance: lenient`` is overruled).

Spaces and line breaks between the parts of JSON are free, up to ``MAX_SPACES`` at each place: without a bound a weak model may write them
for ever.
Exercise it: ``pytest tests/ms4_train/inference/test_grammars.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ms4_train.errors import EngineError, MissingDependencyError, UntrustedInputError
from ms4_train.inference.sampling_params import ConstraintSpec
from ms4_train.untrusted import parse_json

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_TEXT_BYTES = 1 << 16
MAX_CHOICES = 4096
MAX_SPACES = 64
MAX_REASON = 300
JSON_OPTIONS: dict[str, Any] = {"whitespace_pattern": rf"[ \t\n\r]{{1,{MAX_SPACES}}}", "lenient": False}
_LIMITS = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}
"""llguidance's defaults, written down because ours are promises; fewer lexer states, which take 1 to 2 KB each."""


class GrammarTokenizer(Protocol):
    """What llguidance needs of a tokenizer; ``ms4_train.chat.ChatTokenizer`` has it."""

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids, control tokens included."""
        ...

    @property
    def num_special_tokens(self) -> int:
        """Ids below this number are control tokens."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of a token; the tag of a control token."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, without control tokens."""
        ...


class _Vocabulary:
    """A tokenizer in the form that llguidance asks for: attributes, and a call that encodes text."""

    def __init__(self, tokenizer: GrammarTokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = None
        self.special_token_ids = list(range(tokenizer.num_special_tokens))
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        for token_id in self.special_token_ids:
            # llguidance writes control tokens as <NAME>, not [NAME].
            tag = self.tokens[token_id]
            self.tokens[token_id] = b"<" + tag[1:-1] + b">"
        self._tokenizer = tokenizer
        self._id_of: dict[bytes, int] = {}

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text that the grammar leaves no choice about."""
        if isinstance(text, bytes):
            raise TypeError("give text")  # so llguidance learns that this is a tokenizer of text
        try:
            return self._tokenizer.encode_text(text)
        except Exception:  # whatever goes wrong here would be a panic inside llguidance
            self._id_of = self._id_of or {piece: token_id for token_id, piece in enumerate(self.tokens) if len(piece) == 1}
            return [self._id_of[bytes([byte])] for byte in text.encode()]


def to_llguidance(tokenizer: GrammarTokenizer) -> LLTokenizer:
    """The tokenizer for grammars; half a second for the release's vocabulary.

    Raises:
        EngineError: the tokenizer does not tell its tokens' bytes.
        MissingDependencyError: llguidance is not installed.
    """
    if not hasattr(tokenizer, "token_bytes"):
        raise refused("this tokenizer does not tell the bytes of its tokens.", "use a ChatTokenizer.")
    llguidance = _library()
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(tokenizer)))


def grammar_text(spec: ConstraintSpec) -> str:
    """The specification in llguidance's form; what is wrong inside it shows in :func:`new_matcher`.

    Raises:
        EngineError: a text that is too long, or not the JSON that it should be.
    """
    if len(spec.text.encode(errors="replace")) > MAX_TEXT_BYTES:
        raise refused(f"its text is longer than {MAX_TEXT_BYTES:,} bytes.", "simplify the form.")
    matcher = _library().LLMatcher
    try:
        if spec.kind == "json_object":
            return matcher.grammar_from_json_schema('{"type": "object"}', overrides=JSON_OPTIONS)
        if spec.kind == "json_schema":
            return matcher.grammar_from_json_schema(_schema_text(spec.text), overrides=JSON_OPTIONS)
        if spec.kind == "choice":
            return matcher.grammar_from_lark(_choice_grammar(parse_json(spec.text, max_depth=1)))
        return matcher.grammar_from_regex(spec.text) if spec.kind == "regex" else matcher.grammar_from_lark(spec.text)
    except UntrustedInputError as error:
        raise refused(error.message, error.fix) from None
    except ValueError as error:
        raise refused(one_line(str(error))) from None


def new_matcher(tokens: LLTokenizer, grammar: str) -> LLMatcher:
    """A matcher at the beginning of ``grammar``, whose first mask has been computed.

    Raises:
        EngineError: llguidance refuses the grammar, or nothing can follow it.
    """
    llguidance = _library()
    matcher = llguidance.LLMatcher(tokens, grammar, log_level=0, limits=llguidance.LLParserLimits(**_LIMITS))
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise refused(one_line(matcher.get_error()))
    return matcher


def refused(message: str, fix: str | None = "change the form that the answer must have.") -> EngineError:
    """The error of every constraint that cannot be used."""
    return EngineError(message, key="constraint", fix=fix)


def one_line(reason: str) -> str:
    """llguidance's reason as a sentence."""
    text = " ".join(reason.replace("<non-verbose/>", "").split())
    if text.startswith("NoExtension"):
        text = "no answer has this form"
    return f"llguidance refuses it ({text[:MAX_REASON] or 'for no stated reason'})."


def _schema_text(text: str) -> str:
    """A JSON schema that is an object; llguidance takes options for no other."""
    schema = parse_json(text)
    if schema is True:
        return "{}"
    if not isinstance(schema, dict):
        raise refused("the schema false lets nothing pass." if schema is False else "a JSON schema is an object.", "give a schema.")
    return text


def _choice_grammar(options: Any) -> str:
    """One lexeme of all options: as rules, thousands of them would exceed the parser's row."""
    if not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
        raise refused("a choice is a JSON list of strings, with at least one.", 'give ["yes", "no"].')
    if len(options) > MAX_CHOICES:
        raise refused(f"it has {len(options):,} choices.", f"give at most {MAX_CHOICES:,}.")
    return "start: CHOICE\nCHOICE: " + " | ".join(_lark_string(option) for option in options)


def _lark_string(text: str) -> str:
    """A string literal of llguidance's Lark, which takes most characters as they are, and escapes of four digits for the others."""
    plain = (char not in '"\\' and (char.isprintable() or ord(char) > 0xFFFF) for char in text)
    return '"' + "".join(char if is_plain else f"\\u{ord(char):04x}" for char, is_plain in zip(text, plain, strict=True)) + '"'


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependencyError("constrained answers need llguidance.", fix="pip install 'ms4-train[serve]'.") from error
    return llguidance
