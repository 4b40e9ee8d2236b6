r"""How two other harnesses read integer answers, restated from what they publish, to be set beside the integer check.

Both are given the final answer, as behind a server that tells thinking apart. Not restated: that gpt-oss's evals ask again for as long as
the answer is empty, so that samples cut off within their thought are drawn until one is not.
"""

from __future__ import annotations

import re


def gpt_oss_says(answer: str, gold: str) -> bool:
    r"""gpt-oss's evals (openai/gpt-oss, ``gpt_oss/evals/aime_eval.py``).

    The last ``boxed{...}`` or ``framebox{...}`` that is not empty, up to its first closing brace, and of it what follows the last comma;
    or, where the text has no such box, its last run of digits. That must be an integer to Python.
    """
    inside = [found[1] or found[2] for found in re.finditer(r"boxed\{([^}]*)\}|framebox\{([^}]*)\}", answer)]
    filled = [text for text in inside if text]
    if filled:
        read = filled[-1].rpartition(",")[2]
    else:
        read = ["", *re.findall(r"\d+", answer)][-1]
    try:
        return int(read) == int(gold)
    except ValueError:
        return False


def lm_eval_says(answer: str, gold: str) -> bool:
    r"""lm-eval (EleutherAI/lm-evaluation-harness, ``lm_eval/tasks/aime/utils.py``, which all its AIME tasks use).

    What stands in the last ``\boxed`` (without one: in the last ``\fbox``); where there is none, or its braces do not follow at once or do
    not close, what stands between the first and the last dollar sign; with fewer than two of those, the whole answer. It is stripped of a
    few commands and compared with the gold answer as text. Steps that only rewrite fractions, roots and quotients are left out: none of
    them makes the text of an integer.
    """
    read = _boxed_for_lm_eval(answer)
    if read is None:
        read = answer.split("$", 1)[1].rpartition("$")[0] if answer.count("$") > 1 else answer
    return read == gold or _stripped_for_lm_eval(read) == gold


def _boxed_for_lm_eval(answer: str) -> str | None:
    if "\\boxed " in answer:
        return answer.rpartition("\\boxed ")[2].partition("$")[0]
    name = next((name for name in ("\\boxed", "\\fbox") if name in answer), None)
    if name is None:
        return None
    rest = answer.rpartition(name)[2]
    depth = 0
    for position, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "}" and depth == 0:
            return rest[1:position] if name == "\\boxed" and rest[0] == "{" else None
    return None


def _stripped_for_lm_eval(text: str) -> str | None:
    """The text as it is compared; None where the harness gives up, and compares the text as it was."""
    for gone in ("\n", "\\!"):
        text = text.replace(gone, "")
    text = text.replace("\\\\", "\\")
    for gone in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(gone, "")
    if text.count("\\text{ ") > 1:
        return None
    text = text.partition("\\text{ ")[0].replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    text = "0" * text.startswith(".") + text
    left, sign, right = text.partition("=")
    if sign and "=" not in right and len(left) <= 2:
        text = right
    return text.replace(" ", "")
