"""Shows an encoded row as the model will see it: every token that carries loss in one colour, every masked one in another.

Special tokens stand out from text that merely spells them. Without colours (``NO_COLOR``, a file, a pipe) brackets mark what is trained.
Exercise it: ``ms4 data preview FILE`` or ``pytest tests/ms4_train/data/test_preview.py``.
"""

from __future__ import annotations

import itertools

from rich.text import Text

from ms4_train.chat import ChatTokenizer, EncodedRow

TRAINED_STYLE = "bold green"
MASKED_STYLE = "bright_black"
SPECIAL_TRAINED_STYLE = "bold black on green"
SPECIAL_MASKED_STYLE = "white on bright_black"

TRAINED_OPEN, TRAINED_CLOSE = "⟦", "⟧"
SPECIAL_OPEN, SPECIAL_CLOSE = "«", "»"


def legend(*, colour: bool) -> Text:
    """One line that explains the marks."""
    if not colour:
        return Text(
            f"{TRAINED_OPEN}trained{TRAINED_CLOSE}  masked  {SPECIAL_OPEN}special token{SPECIAL_CLOSE} (other tags are ordinary text)"
        )
    return Text.assemble(
        ("trained", TRAINED_STYLE),
        "  ",
        ("masked", MASKED_STYLE),
        "  ",
        ("special token, trained", SPECIAL_TRAINED_STYLE),
        "  ",
        ("special token, masked", SPECIAL_MASKED_STYLE),
    )


def render_row(encoded: EncodedRow, tokenizer: ChatTokenizer, *, colour: bool) -> Text:
    """The row as text, token by token in stream order.

    Args:
        encoded: the row.
        tokenizer: the tokenizer it was encoded with.
        colour: styles if True, brackets if not.

    Returns:
        Text without control characters but line breaks and tabs: a data set must not be able to steer the terminal.
    """
    out = Text()
    tokens = zip(encoded.token_ids, encoded.loss_mask, strict=True)
    # Runs are decoded together, since a character may take several tokens.
    for trained, run in itertools.groupby(tokens, key=lambda token: token[1]):
        if trained and not colour:
            out.append(TRAINED_OPEN)
        for is_special, group in itertools.groupby(
            (token_id for token_id, _ in run), key=lambda token_id: token_id < tokenizer.num_special_tokens
        ):
            text = tokenizer.decode(list(group), keep_special=True)
            if colour:
                special_style, text_style = (SPECIAL_TRAINED_STYLE, TRAINED_STYLE) if trained else (SPECIAL_MASKED_STYLE, MASKED_STYLE)
                out.append(visible(text), style=special_style if is_special else text_style)
            else:
                out.append(f"{SPECIAL_OPEN}{text}{SPECIAL_CLOSE}" if is_special else visible(text))
        if trained and not colour:
            out.append(TRAINED_CLOSE)
    return out


def visible(text: str) -> str:
    """``text`` with control characters written as escapes; line breaks and tabs stay."""
    return "".join(char if char in "\n\t" or char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
