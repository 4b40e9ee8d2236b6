"""Shows an encoded row as the model will see it: every token that carries loss in one colour, every masked one in another.

Special tokens stand out from text that merely spells them; the tokens of an image become one mark with its size. Without colours
(``NO_COLOR``, a file, a pipe) brackets mark what is trained.

Exercise it: ``ms4 data preview FILE`` or ``pytest tests/ms4_train/data/test_preview.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from rich.text import Text

from ms4_train.chat import ChatTokenizer, EncodedRow
from ms4_train.untrusted import EncodedImage

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
    images = iter(encoded.images)
    image_ids = {tokenizer.ids.img, tokenizer.ids.img_break, tokenizer.ids.img_end}

    def kind_of(token_id: int) -> str:
        return "image" if token_id in image_ids else "special" if token_id < tokenizer.num_special_tokens else "text"

    # Runs are decoded together, since a character may take several tokens.
    for trained, run in itertools.groupby(tokens, key=lambda token: token[1]):
        if trained and not colour:
            out.append(TRAINED_OPEN)
        for kind, group in itertools.groupby((token_id for token_id, _ in run), key=kind_of):
            ids = list(group)
            marks = _image_marks(ids, images, tokenizer) if kind == "image" else [tokenizer.decode(ids, keep_special=True)]
            for text in marks:
                if colour:
                    special_style, text_style = (SPECIAL_TRAINED_STYLE, TRAINED_STYLE) if trained else (SPECIAL_MASKED_STYLE, MASKED_STYLE)
                    out.append(visible(text), style=text_style if kind == "text" else special_style)
                else:
                    out.append(visible(text) if kind == "text" else f"{SPECIAL_OPEN}{text}{SPECIAL_CLOSE}")
        if trained and not colour:
            out.append(TRAINED_CLOSE)
    return out


def _image_marks(ids: Sequence[int], images: Iterator[EncodedImage], tokenizer: ChatTokenizer) -> list[str]:
    """One text for each image that ``ids`` hold, of those that come next."""
    marks: list[str] = []
    count = 0
    for token_id in ids:
        count += 1
        if token_id == tokenizer.ids.img_end:
            image = next(images)
            marks.append(f"image of {image.width} x {image.height} pixels: {count:,} tokens")
            count = 0
    return marks


def visible(text: str) -> str:
    """``text`` with control characters written as escapes; line breaks and tabs stay."""
    return "".join(char if char in "\n\t" or char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
