"""Opening a judge from a configuration: what it is sent, and what it is called."""

from __future__ import annotations

import pytest
from support.judges import MODEL, judging

from ms4_evals.clients.base import SampleRequest
from ms4_evals.graders.judge.grader import JudgeGrader
from ms4_evals.graders.judge.opening import judge_name, open_judge
from ms4_evals.tasks.base import TaskProblem
from ms4_train.config.endpoint import JudgeSection
from ms4_train.errors import EvaluationError

PARIS = TaskProblem("lcr_1.0/001", "Where?", "Paris")


def _section(url: str, **values: object) -> JudgeSection:
    return JudgeSection.model_validate({"servers": [{"base_url": url}], "kind": "vllm", "max_attempts": 1, **values})


def test_settings_reach_the_judge() -> None:
    with judging() as judge:
        with open_judge(_section(judge.url, temperature=0.5, max_tokens=77, stream=False)) as (ask, name):
            assert JudgeGrader("1.0", ask, name).grade(PARIS, "Paris", is_truncated=False).verdict == "correct"
        with open_judge(_section(judge.url, temperature=None, extra_body={"reasoning_effort": "medium"})) as (ask, name):
            assert JudgeGrader("1.1", ask, name).grade(PARIS, "Rome", is_truncated=False).verdict == "wrong"
    first, second = judge.requests
    assert (first["temperature"], first["max_tokens"], first["stream"], first["reasoning_effort"]) == (0.5, 77, False, "none")
    assert "temperature" not in second
    assert "top_p" not in second
    assert (second["reasoning_effort"], second["stream"]) == ("medium", True)


def test_the_name_tells_settings_apart() -> None:
    plain = _section("http://127.0.0.1:1/v1")
    names = [
        judge_name(MODEL, plain),
        judge_name(MODEL, _section("http://127.0.0.1:1/v1", temperature=0.5)),
        judge_name(MODEL, _section("http://127.0.0.1:1/v1", temperature=None)),
        judge_name(MODEL, _section("http://127.0.0.1:1/v1", max_tokens=77)),
        judge_name(MODEL, _section("http://127.0.0.1:1/v1", extra_body={"reasoning_effort": "medium"})),
    ]
    assert names[0] == MODEL
    assert len(set(names)) == 5
    # Address, concurrency and time limits shape no reply.
    assert judge_name(MODEL, _section("http://127.0.0.1:2/v1", concurrency=3, timeout=5, workers=2)) == MODEL


@pytest.mark.slow  # the endpoint tries for some seconds
def test_a_judge_that_is_not_there_is_noticed_before_anything_is_drawn() -> None:
    with judging() as judge:
        url = judge.url
    with pytest.raises(EvaluationError), open_judge(_section(url)):
        pass


def test_a_closed_judge_cannot_be_asked() -> None:
    with judging() as judge, open_judge(_section(judge.url)) as (ask, _):
        pass
    request = SampleRequest("judge/x", "none", 0, lambda: [{"role": "user", "content": "x"}], 0.0, 1.0, 5, 0)
    with pytest.raises(EvaluationError, match="not open"):
        ask(request)
