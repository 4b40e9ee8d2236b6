"""The prompts, letter for letter."""

import hashlib

import pytest
from support.code_rows import published_prompts, statement_and_starter

from ms4_evals.tasks.livecodebench.prompts import SYSTEM_MESSAGE, build_messages


@pytest.mark.data
def test_the_reasoning_prompt_is_the_published_one_for_all_279_problems(data_folder):
    prompts = published_prompts(data_folder)
    starters = 0
    for row in prompts.values():
        statement, starter = statement_and_starter(row["prompt"])
        starters += bool(starter)
        assert build_messages("reasoning", statement, starter) == [{"role": "user", "content": row["prompt"]}]
    assert (len(prompts), starters) == (279, 104)


def test_the_official_prompt():
    """As ``get_generic_question_template_answer`` writes it, line feeds included; statements keep their carriage returns."""
    system, user = build_messages("official", "Add.\r\n1 2", "")
    assert system == {
        "role": "system",
        "content": "You are an expert Python programmer. You will be given a question (problem specification) and will generate a correct"
        " Python program that matches the specification and passes all tests.",
    }
    assert user["role"] == "user"
    assert user["content"] == (
        "### Question:\nAdd.\r\n1 2\n\n### Format: Read the inputs from stdin solve the problem and write the answer to stdout (do not"
        " directly test on the sample inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it"
        " reads the inputs, runs the algorithm and writes output to STDOUT.\n```python\n# YOUR CODE HERE\n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )
    starter = "class Solution:\n    def add(self, a: int) -> int:\n        "
    assert build_messages("official", "Add.", starter)[1]["content"] == (
        "### Question:\nAdd.\n\n### Format: You will use the following starter code to write the solution to the problem and enclose your"
        f" code within delimiters.\n```python\n{starter}\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    )


@pytest.mark.parametrize(
    ("starter", "digest"),
    [
        ("", "6dbade90fa35830035298d55cc16f5bf46c562b40de6361d2e28c8690f764f0f"),
        ("class Solution:\n    def f(self):\n        ", "9147db799ccb6a455d7cc7d6022cc14cb3b80d125552ca7ed84c042c222e9a4c"),
    ],
)
def test_the_official_prompt_hashes_to_what_the_benchmark_writes(starter, digest):
    """The digests are of what LiveCodeBench's own function returns for the statement "Statement.", computed with NVIDIA's package of it."""
    (system, user) = build_messages("official", "Statement.", starter)
    assert hashlib.sha256((system["content"] + "\0" + user["content"]).encode()).hexdigest() == digest
    assert system["content"] == SYSTEM_MESSAGE
