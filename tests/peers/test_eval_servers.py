"""The evaluation's client asks real servers: transformers serve, vLLM, llama.cpp and ``ms4 serve``, in both reasoning modes.

Three of them serve one tiny model that this program fine-tuned. Its engine is the oracle: what a server's reply holds as thinking and as
answer, streamed or whole, must be what the engine generates for the same prompt, letter for letter. Every claim of the table of kinds that
these servers can prove is proven here, each with the request that would go wrong without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.eval_servers import serving_llama_cpp, serving_transformers, serving_vllm, text_folder
from support.recorded_replies import Recording, ask, ask_about_itself, check_or_record, sample_request
from support.served import served
from support.trained import MAX_TOKENS

from ms4_evals.clients.base import SampleAnswer, SampleRequest
from ms4_evals.clients.endpoint.client import EndpointClient
from ms4_evals.clients.servers.kinds import KINDS
from ms4_evals.graders.integer import IntegerGrader
from ms4_evals.tasks.arithmetic import make_problems
from ms4_evals.tasks.base import MODES, TaskProblem
from ms4_train.chat import parse_answer
from ms4_train.config.endpoint import EndpointSection

pytestmark = pytest.mark.slow

PROBLEMS = 6
CUT = 8
"""Tokens that end within every thought."""


class Expected:
    """What the engine of this program says to the held-out problems of ``support/trained.py``, greedily in fp32."""

    def __init__(self, trained) -> None:
        self.questions = [problem.question for problem in make_problems("digits", 25, 7, "heldout", steps=4)][:PROBLEMS]
        tokens = trained.our_tokens()
        self.parts: dict[tuple[str, str], tuple[str, str]] = {}
        self.counts: dict[tuple[str, str], tuple[int, int]] = {}
        for start, mode in ((0, "none"), (25, "high")):
            for question, ids in zip(self.questions, tokens[start:], strict=False):
                answer = parse_answer(ids, trained.tokenizer)
                self.parts[question, mode] = (answer.thinking, answer.content)
                self.counts[question, mode] = (len(ids), answer.thinking_tokens)
        assert all(self.parts[question, "high"][0] and not self.parts[question, "none"][0] for question in self.questions)

    def requests(self, **options: Any) -> list[SampleRequest]:
        return [sample_request(question, mode, **{"max_tokens": MAX_TOKENS, **options}) for mode in MODES for question in self.questions]

    def cases(self) -> list[dict[str, Any]]:
        """To record: both modes, streamed and whole, and a thought that is cut."""
        question = self.questions[0]
        found = []
        for mode, stream in (("none", False), ("none", True), ("high", False), ("high", True)):
            thinking, answer = self.parts[question, mode]
            case = {"mode": mode, "stream": stream, "max_tokens": MAX_TOKENS, "question": question}
            found.append({**case, "thinking": thinking, "answer": answer, "finish_reason": "stop"})
        # One token of the cut answer is the tag; the tiny tokenizer has one for every letter of these problems.
        cut = self.parts[question, "high"][0][: CUT - 1]
        for stream in (False, True):
            case = {"mode": "high", "stream": stream, "max_tokens": CUT, "question": question}
            found.append({**case, "thinking": cut, "answer": "", "finish_reason": "length"})
        return found


@pytest.fixture(scope="module")
def expected(trained) -> Expected:
    return Expected(trained)


@pytest.fixture(scope="module")
def text(trained, tmp_path_factory) -> Path:
    return text_folder(trained.model, tmp_path_factory.mktemp("text") / "tiny")


def draw(requests: Sequence[SampleRequest], url: str, model: str | None, **section: Any) -> tuple[EndpointClient, list[SampleAnswer]]:
    client = EndpointClient(EndpointSection.model_validate({"servers": [{"base_url": url, "model": model}], "concurrency": 2, **section}))
    answers: dict[str, SampleAnswer] = {}
    client.answer(requests, lambda request, answer: answers.update({request.request_id: answer}), lambda tokens: None)
    return client, [answers[request.request_id] for request in requests]


def assert_the_engine_s_answers(expected: Expected, url: str, model: str | None, kind: str, *, stream: bool, tells_thinking: bool) -> None:
    requests = expected.requests()
    client, answers = draw(requests, url, model, stream=stream)
    assert client.identity()["kind"] == kind
    for request, answer in zip(requests, answers, strict=True):
        key = (request.problem_id, request.mode)
        assert (answer.error, answer.thinking, answer.answer) == (None, *expected.parts[key])
        assert (answer.finish_reason, answer.thinking_is_open) == ("stop", False)
        # Servers count the end token.
        assert answer.usage_tokens == expected.counts[key][0]
        # vLLM counts the closing tag among the thinking.
        if tells_thinking:
            assert answer.usage_thinking_tokens in {expected.counts[key][1], expected.counts[key][1] + 1}


def assert_a_cut_thought_is_open(expected: Expected, url: str, model: str | None, *, stream: bool) -> None:
    requests = [request for request in expected.requests(max_tokens=CUT) if request.mode == "high"]
    for request, answer in zip(requests, draw(requests, url, model, stream=stream)[1], strict=True):
        whole = expected.parts[request.problem_id, "high"][0]
        assert (answer.finish_reason, answer.thinking_is_open, answer.answer) == ("length", True, "")
        assert answer.thinking
        assert whole.startswith(answer.thinking)


def content(url: str, body: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(f"{url}/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
class TestMs4:
    @pytest.fixture(scope="class")
    def url(self, trained) -> Iterator[str]:
        import torch

        from ms4_train.inference import Engine
        from ms4_train.weights import load_model

        engine = Engine(load_model(trained.model, dtype=torch.float32).eval(), trained.tokenizer, max_batch_size=4, max_context=256)
        with served(engine) as server:
            yield f"{server.url}/v1"

    def test_the_answers_are_the_engine_s(self, expected, url, stream):
        assert_the_engine_s_answers(expected, url, None, "ms4", stream=stream, tells_thinking=True)

    def test_a_cut_thought_is_open(self, expected, url, stream):
        assert_a_cut_thought_is_open(expected, url, None, stream=stream)

    def test_recording(self, expected, url, stream):
        if stream:
            cases = [ask(url, "ms4", "tiny", case) for case in expected.cases()]
            check_or_record("ms4", Recording("ms4 serve", "ms4", ask_about_itself(url), cases))


class TestTransformers:
    @pytest.fixture(scope="class")
    def url(self, text) -> Iterator[str]:
        with serving_transformers(text) as url:
            yield url

    @pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
    def test_the_answers_are_the_engine_s(self, expected, url, stream):
        assert_the_engine_s_answers(expected, url, "tiny", "transformers", stream=stream, tells_thinking=False)

    @pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
    def test_a_cut_thought_is_open(self, expected, url, stream):
        assert_a_cut_thought_is_open(expected, url, "tiny", stream=stream)

    def test_control_an_effort_elsewhere_is_passed_over_in_silence(self, expected, url):
        kind = KINDS["transformers"]
        body = kind.body(sample_request(expected.questions[0], "high", max_tokens=MAX_TOKENS), "tiny", stream=False, extra_body={})
        assert content(url, body)["reasoning_content"] == expected.parts[expected.questions[0], "high"][0]
        body["reasoning_effort"] = body.pop("chat_template_kwargs")["reasoning_effort"]
        assert not content(url, body).get("reasoning_content")

    def test_control_a_temperature_alone_does_nothing(self, expected, url):
        def drawn(number: int, **extra: Any) -> str:
            request = sample_request(expected.questions[0], "none", max_tokens=12, temperature=2.0, seed=number)
            return content(url, KINDS["transformers"].body(request, "tiny", stream=False, extra_body=extra))["content"]

        assert len({drawn(seed) for seed in range(4)}) > 1
        assert drawn(2**63 - 1) == drawn(2**63 - 1)
        assert len({drawn(seed, generation_config=None) for seed in range(4)}) == 1

    def test_control_without_a_response_template_thinking_is_lost_in_the_answer(self, expected, trained, tmp_path):
        folder = text_folder(trained.model, tmp_path / "plain", response_template=False)
        requests = [request for request in expected.requests() if request.mode == "high"][:1]
        with serving_transformers(folder) as url:
            (answer,) = draw(requests, url, "plain")[1]
        assert (answer.thinking, answer.answer) == ("", "".join(expected.parts[requests[0].problem_id, "high"]))

    def test_recording(self, expected, url):
        cases = [ask(url, "transformers", "tiny", case) for case in expected.cases()]
        server = f"transformers serve {version('transformers')}"
        check_or_record("transformers", Recording(server, "transformers", ask_about_itself(url), cases))


@pytest.mark.parametrize("parser", [("--reasoning-parser", "mistral"), ()], ids=["parser", "plain"], scope="class")
class TestVllm:
    @pytest.fixture(scope="class")
    def native(self, text, tmp_path_factory) -> Path:
        from ms4_train.weights.convert import convert

        folder = tmp_path_factory.mktemp("served") / "native"
        convert(text, folder, to="native")
        return folder

    @pytest.fixture(scope="class")
    def url(self, native, parser) -> Iterator[str]:
        with serving_vllm(native, *parser) as url:
            yield url

    @pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
    def test_the_answers_are_the_engine_s(self, expected, url, parser, stream):
        assert_the_engine_s_answers(expected, url, None, "vllm", stream=stream, tells_thinking=bool(parser))

    @pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
    def test_a_cut_thought_is_open(self, expected, url, parser, stream):
        assert_a_cut_thought_is_open(expected, url, None, stream=stream)

    def test_seeds_decide_and_must_fit_64_bits(self, expected, url, parser):
        def drawn(number: int, **extra: Any) -> str:
            request = sample_request(expected.questions[0], "none", max_tokens=12, temperature=2.0, seed=number)
            return content(url, KINDS["vllm"].body(request, "tiny", stream=False, extra_body=extra))["content"]

        assert drawn(2**63 - 1) == drawn(2**63 - 1)
        assert len({drawn(seed) for seed in range(4)}) > 1
        with pytest.raises(AssertionError, match="less_than_equal"):
            drawn(0, seed=2**63)

    def test_control_other_ways_to_ask_are_refused(self, expected, url, parser):
        body = KINDS["vllm"].body(sample_request(expected.questions[0], "high", max_tokens=8), "tiny", stream=False, extra_body={})
        with pytest.raises(AssertionError, match="chat_template is not supported"):
            content(url, {**body, "chat_template_kwargs": {"reasoning_effort": "high"}})
        with pytest.raises(AssertionError, match="reasoning_effort"):
            content(url, {**body, "reasoning_effort": "low"})

    def test_recording(self, expected, url, parser):
        cases = [ask(url, "vllm", "tiny", case) for case in expected.cases()]
        server = f"vLLM {httpx.get(url.removesuffix('/v1') + '/version').json()['version']}"
        name = "vllm_parser" if parser else "vllm_plain"
        check_or_record(name, Recording(server, "vllm", ask_about_itself(url), cases))


ARITHMETIC = [
    TaskProblem(f"small/{left}", f"What is {left} + {right}? Put your final answer within \\boxed{{}}.", str(left + right))
    for left, right in ((2, 3), (12, 30), (7, 8))
]


class TestLlamaCpp:
    """A real language model, small enough to be wrong in every way."""

    @pytest.fixture(scope="class")
    def url(self) -> Iterator[str]:
        with serving_llama_cpp() as url:
            yield url

    def graded(self, url: str, problems: Sequence[TaskProblem], **section: Any) -> list[tuple[SampleAnswer, str]]:
        requests = [
            sample_request(problem.question, mode, max_tokens=48, temperature=0.7, top_p=0.95, seed=2**62 + 5)
            for problem in problems
            for mode in MODES
        ]
        client, answers = draw(requests, url, None, concurrency=1, **section)
        assert client.identity()["kind"] == "llama.cpp"
        grader = IntegerGrader()
        by_question = {problem.question: problem for problem in problems}
        verdicts = [
            grader.grade(by_question[request.problem_id], answer.answer, is_truncated=answer.finish_reason == "length").verdict
            for request, answer in zip(requests, answers, strict=True)
        ]
        return list(zip(answers, verdicts, strict=True))

    @pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
    def test_problems_are_answered_and_graded(self, url, stream):
        found = self.graded(url, ARITHMETIC, stream=stream)
        assert [answer.error for answer, _ in found] == [None] * len(found)
        assert all(answer.answer.strip() and not answer.thinking and (answer.usage_tokens or 0) > 0 for answer, _ in found)
        # A model of 135M seldom writes a box, and goes on until it is stopped.
        assert {verdict for _, verdict in found} & {"no-answer", "truncated"}

    def test_streamed_and_whole_answers_are_one(self, url):
        streamed, whole = (self.graded(url, ARITHMETIC[:2], stream=stream) for stream in (True, False))
        assert [answer.answer for answer, _ in streamed] == [answer.answer for answer, _ in whole]

    @pytest.mark.data
    def test_aime(self, url, data_folder):
        rows = [json.loads(line) for line in (data_folder / "aime" / "aime25.jsonl").read_text().splitlines()][:2]
        problems = [TaskProblem(f"aime/{number}", row["prompt"], "0") for number, row in enumerate(rows)]
        found = self.graded(url, problems)
        assert len(found) == 4
        assert all(answer.error is None and verdict in {"wrong", "no-answer", "truncated"} for answer, verdict in found)

    def test_seeds_are_kept_below_the_one_that_means_random(self, url):
        def drawn(number: int, **extra: Any) -> str:
            request = sample_request("Name an animal.", "none", max_tokens=10, temperature=1.5, seed=number)
            return content(url, KINDS["llama.cpp"].body(request, "smollm2", stream=False, extra_body=extra))["content"]

        assert drawn(2**63 - 1) == drawn(2**63 - 1)
        assert drawn(1) != drawn(2)
        # Controls: the server cuts seeds to 32 bits, and takes the highest one for a wish to have none.
        assert drawn(0, seed=2**32 + 7) == drawn(7)
        assert len({drawn(0, seed=2**63 - 1) for _ in range(4)}) > 1

    def test_only_temperature_and_top_p_shape_the_distribution_in_this_order(self, url):
        request = sample_request("Name an animal.", "none", max_tokens=4, temperature=0.7)

        def settings(**extra: Any) -> dict[str, Any]:
            body = KINDS["llama.cpp"].body(request, "smollm2", stream=False, extra_body={"verbose": True, **extra})
            return httpx.post(f"{url}/chat/completions", json=body, timeout=60).json()["__verbose"]["generation_settings"]

        assert settings()["samplers"] == ["temperature", "top_p"]
        # Control: what it does otherwise.
        otherwise = settings(samplers=None, top_k=None, min_p=None)
        assert otherwise["samplers"][-1] == "temperature"
        assert (otherwise["top_k"], round(otherwise["min_p"], 3)) == (40, 0.05)

    def test_recording(self, url):
        question = "What is 2 + 3?"
        texts = {
            limit: content(
                url, KINDS["llama.cpp"].body(sample_request(question, "none", max_tokens=limit), "", stream=False, extra_body={})
            )
            for limit in (12, 4)
        }
        cases = [
            {"mode": mode, "stream": stream, "max_tokens": limit, "question": question, "thinking": "", "answer": texts[limit]["content"]}
            | {"finish_reason": "stop" if limit == 12 else "length"}
            for mode, stream, limit in (("none", False, 12), ("none", True, 12), ("high", True, 12), ("none", True, 4))
        ]
        recording = Recording(
            f"llama.cpp of xllamacpp {version('xllamacpp')}",
            "llama.cpp",
            {route: found for route, found in ask_about_itself(url).items() if route != "/props"},
            [ask(url, "llama.cpp", "smollm2", case) for case in cases],
        )
        check_or_record("llama_cpp", recording)
