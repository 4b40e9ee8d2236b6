"""A training row as token ids and a loss mask, built piece by piece.

Why not mistral-common for the whole row: its token stream does not say which token came from which turn, and the mask needs exactly
that. So the control ids and the byte-pair ids of each text piece are put together here, in the order of spec section 4, and the result
must equal mistral-common's encoding of the same conversation, id for id. Tests check that on generated conversations, and
``ms4_train.data`` checks it again on a sample of the user's rows before training.

Every text piece is encoded by itself, so text that spells a tag stays ordinary text.

Exercise it: ``pytest tests/ms4_train/chat/test_encode.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ms4_train.chat.images import ImageSpec, image_token_ids, image_tokens
from ms4_train.chat.special_ids import SpecialIds
from ms4_train.chat.types import ChatRow, ImagePart, Message
from ms4_train.errors import RowError
from ms4_train.untrusted import EncodedImage

SpanKind = Literal["begin", "system", "settings", "user", "image", "tool_result", "thinking", "text", "tool_call", "end"]
Turns = Literal["all", "last"]


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``start`` to ``stop`` (exclusive) of a row that belong together, tags included."""

    kind: SpanKind
    start: int
    stop: int
    trained: bool


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A conversation in tokens."""

    token_ids: list[int]
    loss_mask: list[bool]
    """True where the token, as a target, is trained: the model learns to write it after the tokens before it."""
    spans: tuple[Span, ...]
    """In order and without gaps. An image is a span of its own, between the pieces of the turn that it stands in."""
    images: tuple[EncodedImage, ...] = ()
    """The images of the ``image`` spans, in token order."""

    @property
    def num_trained(self) -> int:
        """Tokens that carry loss."""
        return sum(self.loss_mask)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt in tokens, with the images of its ``[IMG]`` tokens in token order."""

    token_ids: list[int]
    images: tuple[EncodedImage, ...]


class RowEncoder:
    """Encodes checked rows with one tokenizer.

    Args:
        encode_text: byte-pair ids of one text piece.
        ids: the special tokens.
        preamble: ids of the tool definitions and the model settings, which stand before the first user message.
        image_spec: how images are cut; None refuses rows with images.
    """

    def __init__(
        self,
        encode_text: Callable[[str], list[int]],
        ids: SpecialIds,
        preamble: Callable[[str, str], list[int]],
        image_spec: ImageSpec | None = None,
    ) -> None:
        self._encode_text = encode_text
        self._ids = ids
        self._preamble = preamble
        self._image_spec = image_spec

    def encode(self, row: ChatRow, *, train_on_thinking: bool = True, train_on_turns: Turns = "all") -> EncodedRow:
        """Encode a whole conversation.

        Args:
            row: a checked conversation.
            train_on_thinking: whether thinking, with its two tags, carries loss.
            train_on_turns: ``last`` trains the last assistant message only.

        Returns:
            Ids equal to mistral-common's, and the mask: thinking, text, tool calls and the end token of the trained assistant turns.

        Raises:
            RowError: ``unsupported-content``: it holds an image, and the tokenizer knows no images.
        """
        ids = self._ids
        token_ids: list[int] = [ids.bos]
        spans: list[Span] = [Span("begin", 0, 1, False)]

        def add(kind: SpanKind, piece: list[int], trained: bool) -> None:
            spans.append(Span(kind, len(token_ids), len(token_ids) + len(piece), trained))
            token_ids.extend(piece)

        last_assistant = max((i for i, message in enumerate(row.messages) if message.role == "assistant"), default=-1)
        is_first_user = True
        for index, message in enumerate(row.messages):
            if message.role == "assistant":
                trained = train_on_turns == "all" or index == last_assistant
                for kind, piece in self._assistant_pieces(message):
                    add(kind, piece, trained and (kind != "thinking" or train_on_thinking))
            elif message.role == "user":
                if is_first_user:
                    add("settings", self._preamble(row.tools_json, row.reasoning_effort), False)
                    is_first_user = False
                for kind, piece in self._shown_pieces(message, "user", ids.begin_inst, ids.end_inst):
                    add(kind, piece, False)
            elif message.role == "system":
                add("system", [ids.begin_system, *self._encode_text(message.text), ids.end_system], False)
            else:
                for kind, piece in self._shown_pieces(message, "tool_result", ids.begin_tool_results, ids.end_tool_results):
                    add(kind, piece, False)
        loss_mask: list[bool] = []
        for span in spans:
            loss_mask += [span.trained] * (span.stop - span.start)
        return EncodedRow(token_ids, loss_mask, tuple(spans), row.images)

    def _shown_pieces(self, message: Message, kind: SpanKind, begin: int, end: int) -> list[tuple[SpanKind, list[int]]]:
        """A turn of a user or tool between its two tags, cut where images stand."""
        if not message.parts:
            return [(kind, [begin, *self._encode_text(message.text), end])]
        if self._image_spec is None:
            raise RowError(
                "the row holds an image, but the tokenizer file has no image section.",
                row_code="unsupported-content",
                fix="use the tekken.json of a multimodal model.",
            )
        parts = message.parts
        # mistral-common's own order of a user's one text and one image, whichever was given first.
        if message.role == "user" and len(parts) == 2 and isinstance(parts[0], str):
            parts = parts[::-1]
        pieces: list[tuple[SpanKind, list[int]]] = [(kind, [begin])]
        for part in parts:
            if isinstance(part, ImagePart):
                grid = image_tokens(part.image.width, part.image.height, self._image_spec)
                pieces += [("image", image_token_ids(grid, self._ids)), (kind, [])]
            else:
                pieces[-1][1].extend(self._encode_text(part))
        pieces[-1][1].append(end)
        return [piece for piece in pieces if piece[1]]

    def _assistant_pieces(self, message: Message) -> list[tuple[SpanKind, list[int]]]:
        ids = self._ids
        pieces: list[tuple[SpanKind, list[int]]] = []
        # mistral-common drops trailing spaces of an answer, but only of one without thinking; equality with it is the point here.
        text = message.text
        if message.thinking is None:
            text = text.rstrip(" ")
        else:
            closing = [ids.end_think] if message.thinking_closed else []
            pieces.append(("thinking", [ids.think, *self._encode_text(message.thinking), *closing]))
        if text:
            pieces.append(("text", self._encode_text(text)))
        for call in message.tool_calls:
            pieces.append(("tool_call", [ids.tool_calls, *self._encode_text(call.name), ids.args, *self._encode_text(call.arguments)]))
        pieces.append(("end", [ids.eos]))
        return pieces
