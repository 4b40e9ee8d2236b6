"""Opens the judge that a configuration names.

The judge is asked without reasoning (``reasoning_effort: none``) unless ``extra_body`` says otherwise: ``{reasoning_effort: medium}`` for
1.1's own judge, ``{reasoning_effort: null}`` for a server that refuses the key. Temperature, token bound and ``extra_body`` are part of the
judge's name where they differ from the defaults, and so part of the identity of every score that it gives.

Exercise it: ``pytest tests/evals/ms4_evals/graders/judge/test_opening.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from ms4_evals.clients.base import SampleAnswer, SampleRequest
from ms4_evals.clients.endpoint.background import BackgroundEndpoint
from ms4_evals.graders.judge.grader import Ask
from ms4_evals.identity import content_hash
from ms4_train.config.endpoint import JudgeSection


@contextlib.contextmanager
def open_judge(section: JudgeSection) -> Iterator[tuple[Ask, str]]:
    """A function that asks the judge, from any thread, and the judge's name; its connections are closed at the end.

    Raises:
        EvaluationError: no server answers for it, or its settings cannot be used.
    """
    if section.temperature is None:
        # A null takes a key out of the request.
        section = section.model_copy(update={"extra_body": {"temperature": None, "top_p": None, **section.extra_body}})
    with BackgroundEndpoint(section) as endpoint:
        temperature, max_tokens = section.temperature or 0.0, section.max_tokens

        def ask(request: SampleRequest) -> SampleAnswer:
            return endpoint.ask(dataclasses.replace(request, temperature=temperature, max_tokens=max_tokens))

        yield ask, judge_name(str(endpoint.identity()["endpoint_model"]), section)


def judge_name(model: str, section: JudgeSection) -> str:
    """The model's name, followed by a hash of the settings that shape its replies where they are not the defaults."""
    settings = {"temperature": section.temperature, "max_tokens": section.max_tokens, "extra_body": section.extra_body}
    defaults = {name: JudgeSection.model_fields[name].get_default() for name in settings}
    return model if settings == defaults else f"{model}+{content_hash(settings)[:8]}"
