"""An engine in its thread: many callers at once, cancellations, failures of one request and of a whole step, an orderly end."""

from __future__ import annotations

import queue
import threading

import pytest

from ms4_train.errors import EngineError
from ms4_train.inference import Completion, Engine, EngineThread, Event, FinishEvent, GenerationRequest, SamplingParams
from ms4_train.inference.run import Run


class Answer:
    """Collects the events of one request."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.completions: queue.Queue[Completion] = queue.Queue()

    def __call__(self, event: Event) -> None:
        if isinstance(event, FinishEvent):
            self.completions.put(event.completion)
        else:
            self.tokens += event.token_ids

    def wait(self) -> Completion:
        return self.completions.get(timeout=60)


def request(name: object, prompt, **sampling) -> GenerationRequest:
    return GenerationRequest(str(name), prompt, SamplingParams(**{"max_tokens": 8, **sampling}))


def test_callers_in_many_threads_get_their_own_answers(model, tokenizer, prompts) -> None:
    wanted = [request(index, prompt) for index, prompt in enumerate(prompts)]
    expected = [completion.token_ids for completion in Engine(model, tokenizer).generate(wanted)]
    answers = [Answer() for _ in wanted]
    with EngineThread(Engine(model, tokenizer, max_batch_size=4)) as thread:
        callers = [threading.Thread(target=thread.submit, args=pair) for pair in zip(wanted, answers, strict=True)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        completions = [answer.wait() for answer in answers]
        assert thread.num_unfinished == 0
    assert [completion.token_ids for completion in completions] == expected
    assert [answer.tokens for answer in answers] == expected


def test_a_request_is_refused_in_the_callers_thread(model, tokenizer, prompts) -> None:
    with EngineThread(Engine(model, tokenizer, max_context=64)) as thread:
        with pytest.raises(EngineError, match="above max_context"):
            thread.submit(request("long", prompts[0], max_tokens=1000), Answer())
        answer = Answer()
        thread.submit(request("a", prompts[0], max_tokens=30), answer)
        with pytest.raises(EngineError, match="twice"):
            thread.submit(request("a", prompts[0]), Answer())
        answer.wait()


def test_cancelling_ends_an_answer_and_a_stop_ends_all(model, tokenizer, prompts) -> None:
    first, second = Answer(), Answer()
    thread = EngineThread(Engine(model, tokenizer, max_context=4096))
    thread.start()
    thread.submit(request("first", prompts[0], max_tokens=3500, ignore_eos=True), first)
    thread.submit(request("second", prompts[1], max_tokens=3500, ignore_eos=True), second)
    thread.cancel("first")
    assert first.wait().finish_reason == "cancelled"
    thread.stop()
    assert second.wait().finish_reason == "cancelled"
    assert not thread.engine.is_open
    with pytest.raises(EngineError, match="has stopped"):
        thread.submit(request("third", prompts[0]), Answer())
    with pytest.raises(EngineError, match="has stopped"):
        thread.call(lambda engine: None)


def test_calls_run_between_steps_and_give_their_result_or_their_error(model, tokenizer) -> None:
    def fail(engine: Engine) -> None:
        raise EngineError("no", fix="yes")

    with EngineThread(Engine(model, tokenizer)) as thread:
        assert thread.call(lambda engine: threading.current_thread().name) == "ms4-engine"
        with pytest.raises(EngineError, match="no"):
            thread.call(fail)


def test_a_step_that_fails_ends_the_requests_of_the_moment_and_not_the_engine(model, tokenizer, prompts, monkeypatch) -> None:
    real = Run.step
    failures = [MemoryError("out of memory")]

    def step(run: Run) -> list[Event]:
        if failures:
            raise failures.pop()
        return real(run)

    monkeypatch.setattr(Run, "step", step)
    answer, later = Answer(), Answer()
    with EngineThread(Engine(model, tokenizer)) as thread:
        thread.submit(request("a", prompts[0]), answer)
        failed = answer.wait()
        assert failed.finish_reason == "error"
        assert "out of memory" in str(failed.error)
        thread.submit(request("b", prompts[0]), later)
        assert later.wait().finish_reason in ("stop", "length")


def test_a_listener_that_fails_harms_nobody_else(model, tokenizer, prompts) -> None:
    def broken(event: Event) -> None:
        raise ValueError("from the listener")

    answer = Answer()
    with EngineThread(Engine(model, tokenizer)) as thread:
        thread.submit(request("a", prompts[0]), broken)
        thread.submit(request("b", prompts[1]), answer)
        assert answer.wait().finish_reason in ("stop", "length")
