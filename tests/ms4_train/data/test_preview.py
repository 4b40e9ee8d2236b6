"""The preview shows the mask, real special tokens, and nothing that steers a terminal."""

from __future__ import annotations

from support.image_rows import image_chat, png
from support.images import data_url
from support.rows import chat, tool_row
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import read_row
from ms4_train.data.preview import MASKED_STYLE, SPECIAL_MASKED_STYLE, SPECIAL_TRAINED_STYLE, TRAINED_STYLE, legend, render_row, visible
from ms4_train.untrusted import ImageReader


def test_brackets_mark_what_is_trained() -> None:
    encoded = tiny_tokenizer().encode_row(read_row(chat("q </s>", "é a", thinking="t")))
    shown = render_row(encoded, tiny_tokenizer(), colour=False).plain
    assert shown == (
        '«<s>[MODEL_SETTINGS]»{"reasoning_effort": "high"}«[/MODEL_SETTINGS][INST]»q </s>«[/INST]»⟦«[THINK]»t«[/THINK]»é a«</s>»⟧'
    )


def test_colours_cover_the_same_tokens() -> None:
    tokenizer = tiny_tokenizer()
    encoded = tokenizer.encode_row(read_row(tool_row()))
    text = render_row(encoded, tokenizer, colour=True)
    assert text.plain == tokenizer.decode(encoded.token_ids, keep_special=True)
    styled = dict.fromkeys((TRAINED_STYLE, MASKED_STYLE, SPECIAL_TRAINED_STYLE, SPECIAL_MASKED_STYLE), "")
    for span in text.spans:
        styled[str(span.style)] += text.plain[span.start : span.end]
    assert styled[SPECIAL_TRAINED_STYLE] == "[THINK][/THINK][TOOL_CALLS][ARGS][TOOL_CALLS][ARGS]</s></s>[THINK][/THINK]</s>"
    assert styled[TRAINED_STYLE].startswith("I need both tools.Looking.get_weather")
    assert "Weather and time?" in styled[MASKED_STYLE]
    assert "[INST]" in styled[SPECIAL_MASKED_STYLE]
    assert sum(map(len, styled.values())) == len(text.plain)


def test_control_characters_are_written_out() -> None:
    assert visible("a\x1b[31m\tb\n\x07\u202e") == "a\\x1b[31m\tb\n\\x07\\u202e"


def test_markup_in_rows_is_text() -> None:
    encoded = tiny_tokenizer().encode_row(read_row(chat("[bold]q[/bold]", "[red]a")))
    assert "[bold]q[/bold]" in render_row(encoded, tiny_tokenizer(), colour=False).plain


def test_legend_explains_the_marks() -> None:
    assert "⟦trained⟧" in legend(colour=False).plain
    assert TRAINED_STYLE in [str(span.style) for span in legend(colour=True).spans]


def test_an_image_is_one_mark_with_its_size() -> None:
    tokenizer = tiny_tokenizer()
    url = {"type": "image_url", "image_url": {"url": data_url(png(1))}}
    other = {"type": "image_url", "image_url": {"url": data_url(png(2))}}
    row = read_row(image_chat("which?", "a", url, other), images=ImageReader())
    encoded = tokenizer.encode_row(row)
    for colour in (False, True):
        plain = render_row(encoded, tokenizer, colour=colour).plain
        first, second = "image of 60 x 30 pixels: 8 tokens", "image of 30 x 85 pixels: 12 tokens"
        assert first in plain
        assert plain.index(first) < plain.index(second) < plain.index("which?")
        assert "[IMG]" not in plain
    assert f"«{first}»«{second}»which?" in render_row(encoded, tokenizer, colour=False).plain
    # The tokens that the marks stand for: rows of cells, each with its break.
    assert sum(token in (10, 12, 13) for token in encoded.token_ids) == 8 + 12
