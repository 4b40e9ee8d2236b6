"""The preview shows the mask, real special tokens, and nothing that steers a terminal."""

from __future__ import annotations

from support.rows import chat, tool_row
from support.tokenizers import tiny_tokenizer

from ms4_train.chat import read_row
from ms4_train.data.preview import MASKED_STYLE, SPECIAL_MASKED_STYLE, SPECIAL_TRAINED_STYLE, TRAINED_STYLE, legend, render_row, visible


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
