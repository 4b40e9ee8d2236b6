"""The tokenizer of one model: text to ids and back, prompts, and training rows, all by the version 15 chat format.

Byte-pair encoding and prompts are mistral-common's; training rows are ``ms4_train.chat.encode``'s, checked against it.
Exercise it: ``pytest tests/ms4_train/chat/test_tokenizer.py``.

Not covered: audio.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy, TokenizerVersion
from mistral_common.tokens.tokenizers.instruct import InstructTokenizerV15
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.model_settings_builder import ModelSettingsBuilder
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from ms4_train.chat.derive import MAX_TOKENIZER_BYTES, NUM_BYTES
from ms4_train.chat.encode import EncodedPrompt, EncodedRow, RowEncoder, Turns
from ms4_train.chat.image_encoders import SizeEncoder, image_encoder
from ms4_train.chat.images import ImageSpec
from ms4_train.chat.messages import read_prompt, read_row
from ms4_train.chat.request import ImageToChunk, to_request
from ms4_train.chat.special_ids import SpecialIds
from ms4_train.chat.types import ChatRow, Message
from ms4_train.errors import RowError, TokenizerError, UntrustedInputError
from ms4_train.untrusted import DEFAULT_LIMITS, ImageLimits, ImageReader, decode_image, parse_json, read_bytes

_VERSION = "v15"


class ChatTokenizer:
    """A version 15 tekken tokenizer; make one with ``ChatTokenizer.from_file``.

    ``image_spec`` says how it cuts images; None where its file does not describe any.
    """

    def __init__(self, tekken: Tekkenizer, path: Path, image_spec: ImageSpec | None = None) -> None:
        self.path = path
        self._tekken = tekken
        self._bpe_offset = tekken.num_special_tokens
        self.ids = SpecialIds.from_lookup(tekken.get_special_token)
        self.image_spec = image_spec
        # Prompts count an image's tokens from its size; the oracle decodes it. Without a spec images are refused before they get here.
        sizes = SizeEncoder(image_spec, self.ids) if image_spec else None
        pixels = image_encoder(image_spec, self.ids) if image_spec else None
        self._prompts = self._pipeline(InstructTokenizerV15(tekken, image_encoder=sizes), ValidationMode.test)
        self._rows = self._pipeline(InstructTokenizerV15(tekken, image_encoder=pixels), ValidationMode.finetuning)
        self._rows_by_size = self._pipeline(InstructTokenizerV15(tekken, image_encoder=sizes), ValidationMode.finetuning)
        self._preamble = functools.lru_cache(maxsize=4096)(self._encode_preamble)
        self._encoder = RowEncoder(self.encode_text, self.ids, self._preamble, image_spec)

    @staticmethod
    def _pipeline(instruct: InstructTokenizerV15, mode: ValidationMode) -> MistralTokenizer[Any, Any, Any, Any, Any]:
        builder = instruct.tokenizer.model_settings_builder
        return MistralTokenizer(
            instruct,
            validator=get_validator(TokenizerVersion.v15, mode=mode),
            request_normalizer=get_normalizer(TokenizerVersion.v15, builder),
        )

    @classmethod
    def from_file(cls, path: str | Path) -> ChatTokenizer:
        """Load a ``tekken.json`` of version 15: the release's, or a derived one.

        Raises:
            UntrustedInputError: the file is missing, too large or not JSON.
            TokenizerError: it is not a tekken file, is of another version, or lacks a special token.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "tekken.json"
        data = parse_json(read_bytes(path, max_bytes=MAX_TOKENIZER_BYTES), file=path)
        if not isinstance(data, dict) or not isinstance(data.get("config"), dict) or not isinstance(data.get("vocab"), list):
            raise TokenizerError("is not a tekken tokenizer file.", file=path, fix="give the tekken.json of a Mistral Small 4 release.")
        version = data["config"].get("version")
        if version != _VERSION:
            raise TokenizerError(
                f"is a tokenizer of version {version!r:.20}; Mistral Small 4 needs {_VERSION}.",
                file=path,
                fix="give the release's tekken.json, or derive one with: ms4 model tokenizer tekken.json",
            )
        if not isinstance(data.get("model_settings_builder"), dict):
            raise TokenizerError(
                "has no model_settings_builder, so it cannot express reasoning_effort.",
                file=path,
                fix="give the tekken.json of Mistral Small 4.",
            )
        try:
            tokenizer = cls(_build_tekken(data, path), path, ImageSpec.from_section(data.get("image")))
        # mistral-common checks a file with asserts and plain ValueErrors.
        except (AssertionError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200] or "its tokens do not fit together"
            raise TokenizerError(f"cannot be used ({reason}).", file=path, fix="get the file again from its source.") from None
        tokenizer._check_modes()
        return tokenizer

    @classmethod
    def of_model(cls, folder: str | Path, file: str | Path | None = None) -> ChatTokenizer:
        """Load the tokenizer of a model: ``file`` where one is named, else the ``tekken.json`` beside the weights, in any layout.

        Raises:
            TokenizerError: the folder has none; or as ``from_file``.
            UntrustedInputError: as ``from_file``.
        """
        if file is None and Path(folder).is_dir() and not (Path(folder) / "tekken.json").exists():
            raise TokenizerError(
                "holds no tekken.json.",
                file=folder,
                fix="copy the one of the model's release into the folder, or name one with model.tokenizer or --tokenizer.",
            )
        return cls.from_file(file if file is not None else Path(folder) / "tekken.json")

    def _check_modes(self) -> None:
        """Refuse a file whose settings do not tell the two modes apart: both would be trained on the same prompts."""
        try:
            differ = self._preamble("", "none") != self._preamble("", "high")
        except (RowError, ValueError):
            differ = False
        if not differ:
            raise TokenizerError(
                "cannot express reasoning_effort none and high.",
                file=self.path,
                key="model_settings_builder",
                fix="give the tekken.json of Mistral Small 4.",
            )

    @property
    def vocab_size(self) -> int:
        """Special tokens plus byte-pair tokens."""
        return self._tekken.n_words

    @property
    def num_special_tokens(self) -> int:
        """Ids below this number are special tokens."""
        return self._bpe_offset

    @property
    def bos_id(self) -> int:
        """``<s>``, the first token of every conversation."""
        return self.ids.bos

    @property
    def eos_id(self) -> int:
        """``</s>``, which ends every assistant turn."""
        return self.ids.eos

    @property
    def pad_id(self) -> int:
        """``<pad>``."""
        return self.ids.pad

    @property
    def think_id(self) -> int:
        """``[THINK]``."""
        return self.ids.think

    @property
    def end_think_id(self) -> int:
        """``[/THINK]``."""
        return self.ids.end_think

    def check_model(self, model_vocab_size: int) -> None:
        """Check that a model has an embedding for every token.

        Raises:
            TokenizerError: the model's vocabulary is smaller than the tokenizer's.
        """
        if self.vocab_size > model_vocab_size:
            raise TokenizerError(
                f"has {self.vocab_size:,} tokens, but the model only {model_vocab_size:,}; they do not belong together.",
                file=self.path,
                fix="give the tekken.json that lies beside the model, or create the model with this tokenizer.",
            )

    def encode_text(self, text: str) -> list[int]:
        """Byte-pair ids of plain text; tags in it are ordinary text.

        Raises:
            RowError: ``unsplittable-text``: the tokenizer's pattern gives up (a run of some 100,000 spaces).
        """
        try:
            return self._tekken.encode(text, bos=False, eos=False)
        except ValueError:
            raise RowError(
                f"a text of {len(text):,} characters overwhelms the tokenizer's pattern.",
                row_code="unsplittable-text",
                fix="remove very long runs of spaces.",
            ) from None

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        """Text of token ids.

        Bytes that are not UTF-8 (a character cut in two) and ids past the vocabulary become the replacement character.

        Args:
            ids: token ids.
            keep_special: write special tokens as their tags instead of leaving them out.
        """
        policy = SpecialTokenPolicy.KEEP if keep_special else SpecialTokenPolicy.IGNORE
        if ids and min(ids) >= 0 and max(ids) < self.vocab_size:
            return self._tekken.decode(list(ids), special_token_policy=policy)
        pieces: list[str] = []
        known: list[int] = []
        for token in ids:
            if 0 <= token < self.vocab_size:
                known.append(token)
            else:
                pieces += [self._tekken.decode(known, special_token_policy=policy), "\ufffd"]
                known = []
        return "".join([*pieces, self._tekken.decode(known, special_token_policy=policy)])

    def token_text(self, token_id: int) -> str:
        """Text of one token; a special token's tag."""
        return self.decode([token_id], keep_special=True)

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token, which may be part of a character; a special token's tag, and U+FFFD past the vocabulary."""
        if not 0 <= token_id < self.vocab_size:
            return "\ufffd".encode()
        return self._tekken.id_to_byte_piece(token_id, SpecialTokenPolicy.KEEP)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        reasoning_effort: str | None = "none",
    ) -> list[int]:
        """A prompt that ends where the assistant answers, as mistral-common encodes it.

        Args:
            messages: as in a training row, ending with a user or tool message.
            tools: definitions in OpenAI's form.
            reasoning_effort: ``none`` or ``high``; None means ``none``.

        Raises:
            RowError: the messages are malformed, or hold images (see ``encode_prompt_with_images``).
        """
        return self.encode_prompt(read_prompt(messages, tools=tools, reasoning_effort=reasoning_effort))

    def encode_prompt(self, row: ChatRow) -> list[int]:
        """``encode_chat`` of an already checked conversation.

        Raises:
            RowError: ``refused``: mistral-common refuses it; ``unsupported-content``: it holds images.
        """
        if row.images:
            raise RowError(
                "the conversation holds images, but only its tokens are asked for.",
                row_code="unsupported-content",
                fix="use a multimodal model, or remove the images.",
            )
        return self.encode_prompt_with_images(row).token_ids

    def encode_prompt_with_images(self, row: ChatRow) -> EncodedPrompt:
        """A prompt that may hold images, as mistral-common encodes it; nothing is decoded yet (see ``images.to_image_batch``).

        Raises:
            RowError: ``refused``: mistral-common refuses it; ``unsupported-content``: it holds images, and this tokenizer knows none.
        """
        self._check_images(row)
        return EncodedPrompt(self._encode_with(self._prompts, row, SizeEncoder.chunk), row.images)

    def _check_images(self, row: ChatRow) -> None:
        if row.images and self.image_spec is None:
            raise RowError(
                "the conversation holds images, but the tokenizer file has no image section.",
                row_code="unsupported-content",
                fix="use the tekken.json of a multimodal model.",
            )

    def read_row(self, row: Any, *, images: ImageReader | None = None) -> ChatRow:
        """Check a training row (see ``ms4_train.chat.messages.read_row``).

        Raises:
            RowError: the row is malformed.
        """
        return read_row(row, images=images)

    def encode_row(self, row: ChatRow, *, train_on_thinking: bool = True, train_on_turns: Turns = "all") -> EncodedRow:
        """A whole conversation with its loss mask (see ``ms4_train.chat.encode``).

        Raises:
            RowError: ``refused``, ``unsplittable-text`` or ``unsupported-content``.
        """
        return self._encoder.encode(row, train_on_thinking=train_on_thinking, train_on_turns=train_on_turns)

    def encode_with_mistral_common(self, row: ChatRow, *, decode: bool = True, limits: ImageLimits = DEFAULT_LIMITS) -> list[int]:
        """The same conversation by mistral-common's own path: the oracle for ``encode_row``.

        Args:
            row: a checked conversation.
            decode: let mistral-common decode every image, here and now; otherwise it knows them by their size.
            limits: bounds of decoding.

        Raises:
            RowError: ``refused``: mistral-common refuses it; ``bad-image``: an image cannot be decoded.
        """
        self._check_images(row)
        if not decode:
            return self._encode_with(self._rows_by_size, row, SizeEncoder.chunk)
        try:
            return self._encode_with(self._rows, row, lambda image: ImageChunk(image=decode_image(image, limits)))
        except UntrustedInputError as error:
            raise RowError(f"the image {error.message}", row_code="bad-image", fix=error.fix) from None

    def _encode_with(self, pipeline: MistralTokenizer[Any, Any, Any, Any, Any], row: ChatRow, image_chunk: ImageToChunk) -> list[int]:
        try:
            return list(pipeline.encode_chat_completion(to_request(row, image_chunk)).tokens)
        except (MistralCommonException, ValueError) as error:
            raise RowError(f"mistral-common refuses the conversation ({str(error)[:300]}).", row_code="refused") from None

    def _encode_preamble(self, tools_json: str, reasoning_effort: Any) -> list[int]:
        # Taken from mistral-common rather than rebuilt, so that whatever settings a tokenizer file declares are there.
        probe = ChatRow((Message("user", "x"),), tools_json=tools_json, reasoning_effort=reasoning_effort)
        tokens = self.encode_prompt(probe)
        return tokens[1 : tokens.index(self.ids.begin_inst)]


def _build_tekken(data: dict[str, Any], path: Path) -> Tekkenizer:
    config = data["config"]
    if config["default_vocab_size"] - config["default_num_special_tokens"] < NUM_BYTES:
        raise ValueError(f"it keeps fewer than the {NUM_BYTES} single bytes")
    if not config["pattern"]:
        raise ValueError("its pattern is empty")
    for entry in data["vocab"][: config["default_vocab_size"] - config["default_num_special_tokens"]]:
        # mistral-common decodes leniently, so a damaged entry would become another token, or an empty one.
        if not base64.b64decode(entry["token_bytes"], validate=True):
            raise ValueError(f"the token of rank {entry['rank']} is empty")
    return Tekkenizer(
        vocab=data["vocab"],
        special_tokens=data["special_tokens"],
        pattern=config["pattern"],
        vocab_size=config["default_vocab_size"],
        num_special_tokens=config["default_num_special_tokens"],
        version=TokenizerVersion.v15,
        name=path.stem,
        model_settings_builder=ModelSettingsBuilder.model_validate(data["model_settings_builder"]),
        _path=path,
    )
