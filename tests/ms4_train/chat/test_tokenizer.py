"""The tokenizer: refused files, decoding, vocabulary check."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.rows import chat
from support.tokenizers import tiny_tokenizer, tokenizer_file

from ms4_train.chat import ChatRow, ChatTokenizer, Message
from ms4_train.errors import MS4Error, RowError, TokenizerError, UntrustedInputError


def changed_file(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "tekken.json") -> Path:
    data = json.loads(tokenizer_file(400).read_text())
    change(data)
    path = folder / name
    path.write_text(json.dumps(data))
    return path


def test_a_changed_copy_is_read(tmp_path: Path) -> None:
    # Negative control for the refusals below. The release's file may have a name of its own.
    assert ChatTokenizer.from_file(changed_file(tmp_path, lambda data: None, "other.json")).vocab_size == 438


@pytest.mark.parametrize("version", ["v3", "v13", "v99", None])
def test_other_versions_are_refused_by_name(tmp_path: Path, version: str | None) -> None:
    path = changed_file(tmp_path, lambda data: data["config"].update(version=version))
    with pytest.raises(TokenizerError, match=f"version {version!r}.*v15.*Fix"):
        ChatTokenizer.from_file(path)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no settings": lambda data: data.pop("model_settings_builder"),
    "no special tokens": lambda data: data.pop("special_tokens"),
    "no think token": lambda data: data["special_tokens"][34].update(token_str="[OTHER]"),
    "unknown setting": lambda data: data["model_settings_builder"].update(reasoning_effort={"type": "enum"}),
    "wrong ranks": lambda data: data["vocab"][300].update(rank=7),
    "bytes that are not base64": lambda data: data["vocab"][300].update(token_bytes="!"),
    "vocabulary too short": lambda data: data.update(vocab=data["vocab"][:10]),
    "vocabulary of other things": lambda data: data.update(vocab=[1, 2]),
    "no size": lambda data: data["config"].pop("default_vocab_size"),
    "a size that is text": lambda data: data["config"].update(default_vocab_size="many"),
    "a pattern that is none": lambda data: data["config"].update(pattern="(("),
    "an empty pattern": lambda data: data["config"].update(pattern=""),
    "fewer tokens than bytes": lambda data: data["config"].update(default_vocab_size=100),
    "settings without modes": lambda data: data.update(model_settings_builder={}),
    "one mode only": lambda data: data["model_settings_builder"]["reasoning_effort"].update(values=["none"]),
    "two ranks exchanged": lambda data: (data["vocab"][5].update(rank=6), data["vocab"][6].update(rank=5)),
    "no config": lambda data: data.pop("config"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_damaged_files_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(TokenizerError, match=r"tekken\.json.*Fix") as caught:
        ChatTokenizer.from_file(changed_file(tmp_path, change))
    assert "()" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "[]", "{", "{}", '{"config": {}, "vocab": []}', '{"a": 1, "a": 2}'])
def test_files_of_another_kind_are_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tekken.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises((TokenizerError, UntrustedInputError)):
        ChatTokenizer.from_file(path)


def test_mistral_commons_own_files_are_refused() -> None:
    import mistral_common

    shipped = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    with pytest.raises(TokenizerError, match="v3"):
        ChatTokenizer.from_file(shipped)


def test_vocabulary_must_fit_the_model() -> None:
    tiny_tokenizer().check_model(438)
    tiny_tokenizer().check_model(512)
    with pytest.raises(TokenizerError, match="438"):
        tiny_tokenizer().check_model(437)


def test_decoding() -> None:
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.bos_id, *tokenizer.encode_text("日 a"), tokenizer.eos_id]
    assert tokenizer.decode(ids) == "日 a"
    assert tokenizer.decode(ids, keep_special=True) == "<s>日 a</s>"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([*tokenizer.encode_text("a"), 10_000, -1, *tokenizer.encode_text("b")]) == "a\ufffd\ufffdb"
    assert "\ufffd" in tokenizer.decode(tokenizer.encode_text("日")[:1])
    assert tokenizer.token_text(tokenizer.think_id) == "[THINK]"
    text = "日本 [THINK] 😀"
    assert b"".join(tokenizer.token_bytes(token_id) for token_id in tokenizer.encode_text(text)) == text.encode()
    assert tokenizer.token_bytes(tokenizer.think_id) == b"[THINK]"
    assert tokenizer.token_bytes(tokenizer.vocab_size) == "\ufffd".encode()


def test_encode_chat_checks_its_messages() -> None:
    with pytest.raises(RowError, match="cannot stand"):
        tiny_tokenizer().encode_chat([{"role": "assistant", "content": "a"}])
    with pytest.raises(RowError) as caught:
        tiny_tokenizer().encode_chat([{"role": "user", "content": "a"}], reasoning_effort="low")
    assert caught.value.row_code == "bad-mode"


def test_what_mistral_common_refuses_is_our_error() -> None:
    with pytest.raises(MS4Error, match="mistral-common refuses"):
        tiny_tokenizer().encode_with_mistral_common(ChatRow((Message("assistant", "a"), Message("system", "s"))))


def test_read_row_is_the_row_reader() -> None:
    assert tiny_tokenizer().read_row(chat("q", "a")).messages[1].text == "a"


def test_a_models_tokenizer_lies_beside_its_weights_or_is_named(tmp_path: Path) -> None:
    file = tokenizer_file(400)
    shutil.copy(file, tmp_path / "tekken.json")
    assert ChatTokenizer.of_model(tmp_path).path == tmp_path / "tekken.json"
    assert ChatTokenizer.of_model(tmp_path, file).path == file
    (tmp_path / "tekken.json").unlink()
    assert ChatTokenizer.of_model(str(tmp_path), str(file)).vocab_size == 438
    with pytest.raises(TokenizerError, match=r"holds no tekken\.json") as caught:
        ChatTokenizer.of_model(tmp_path)
    assert "model.tokenizer or --tokenizer" in str(caught.value)
    with pytest.raises(UntrustedInputError, match="does not exist"):
        ChatTokenizer.of_model(tmp_path / "none")  # a wrong path is that, not a missing tokenizer
