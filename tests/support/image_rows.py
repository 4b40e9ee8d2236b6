"""Rows with images for tests of the way from a file to a batch: small pictures, some rows with several, some with none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.images import data_url, encoded, picture
from support.rows import chat, write_rows

SIZES = ((28, 28), (60, 30), (30, 85), (100, 60))
"""(width, height); 1 x 1, 3 x 2, 2 x 4 and 4 x 3 cells."""


def png(seed: int) -> bytes:
    """A small picture; another for each number."""
    return encoded(picture(*SIZES[seed % len(SIZES)], seed=seed))


def broken_png() -> bytes:
    """A picture with a whole header and damaged pixels: only decoding tells."""
    data = bytearray(encoded(picture(200, 150)))
    data[20_000:20_100] = bytes(100)
    return bytes(data)


def image_chat(question: str, answer: str, *sources: Any) -> dict[str, Any]:
    """A row whose user turn shows images (content parts, or ``path=``) and then asks."""
    parts = [source if isinstance(source, dict) else {"type": "image", "path": source} for source in sources]
    return {
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}, {"role": "assistant", "content": answer}]
    }


def mixed_rows(folder: Path, count: int, *, inline: bool = False) -> list[dict[str, Any]]:
    """Rows with 1, 0, 2, 0 images and so on; the files lie in ``folder/pictures``, or the rows hold data URLs (``inline``)."""
    (folder / "pictures").mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        sources: list[Any] = []
        for seed in range(10 * number, 10 * number + (0, 1, 0, 2)[(number + 1) % 4]):
            if inline:
                sources.append({"type": "image_url", "image_url": {"url": data_url(png(seed))}})
            else:
                (folder / "pictures" / f"{seed}.png").write_bytes(png(seed))
                sources.append(f"pictures/{seed}.png")
        rows.append(image_chat(f"what is {number}?", "a" * (1 + number % 5), *sources) if sources else chat(f"q{number}", f"a{number}"))
    return rows


def mixed_file(folder: Path, count: int, *, inline: bool = False) -> Path:
    """The rows as a JSON lines file in ``folder``."""
    return write_rows(folder / ("inline.jsonl" if inline else "rows.jsonl"), mixed_rows(folder, count, inline=inline))
