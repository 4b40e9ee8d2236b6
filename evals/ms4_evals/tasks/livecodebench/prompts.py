"""The two prompts of LiveCodeBench, quoted exactly because scores depend on them.

``official``: ``lcb_runner/prompts/code_generation.py`` of LiveCodeBench/LiveCodeBench, commit 28fef95: ``SYSTEM_MESSAGE_GENERIC`` as system
message and ``get_generic_question_template_answer``, as its style ``MistralWeb`` sends them. The benchmark also stops at ``###``; that is
left out, because it cuts off answers that have headings.

``reasoning``: one user message, as that file has it for reasoning models (``get_deepseek_r1_question_template_answer``, without its chat
tokens) and as QwenLM/QwQ publishes it ready-made (``eval/data/livecodebench_v5.jsonl``).

Exercise it: ``pytest tests/evals/ms4_evals/tasks/livecodebench/test_prompts.py``.
"""

from __future__ import annotations

from typing import Literal

from ms4_evals.tasks.base import Message

Style = Literal["official", "reasoning"]

_ROLE = (
    "You will be given a question (problem specification) and will generate a correct Python program that matches the specification and"
    " passes all tests."
)
SYSTEM_MESSAGE = f"You are an expert Python programmer. {_ROLE}"

_WITH_STARTER_CODE = "You will use the following starter code to write the solution to the problem and enclose your code within delimiters."
_WITHOUT_STARTER_CODE = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample inputs). Enclose your"
    " code within delimiters as follows. Ensure that when the python program runs, it reads the inputs, runs the algorithm and writes"
    " output to STDOUT."
)


def build_messages(style: Style, statement: str, starter_code: str) -> list[Message]:
    """The conversation that asks one problem.

    Args:
        style: which prompt.
        statement: ``question_content`` of the data.
        starter_code: of LeetCode problems; empty where programs read standard input.
    """
    instruction = _WITH_STARTER_CODE if starter_code else _WITHOUT_STARTER_CODE
    code = f"```python\n{starter_code or '# YOUR CODE HERE'}\n```\n\n"
    if style == "reasoning":
        return [{"role": "user", "content": f"{_ROLE}\n\nQuestion: {statement}\n\n{instruction}\n{code}"}]
    question = f"### Question:\n{statement}\n\n### Format: {instruction}\n{code}### Answer: (use the provided format with backticks)\n\n"
    return [{"role": "system", "content": SYSTEM_MESSAGE}, {"role": "user", "content": question}]
