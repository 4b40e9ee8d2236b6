"""One client, one process: asks a scripted server a number of questions and says how long it took and what it got.

It imports the standard library and the contestant's package, so that it runs in an environment that has nothing else. ``eval_client.py``
starts it. A contestant is a function ``(work) -> answers``: of every question the text, or None where the client gave it up.

Exercise it: ``python benchmarks/eval_client.py --requests 200 --repeats 1``.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

Answers = dict[str, str | None]


def ours(work: dict[str, Any], *, stream: bool) -> Answers:
    """This tree's client."""
    from ms4_evals.clients.base import SampleRequest
    from ms4_evals.clients.endpoint.client import EndpointClient
    from ms4_train.config.endpoint import EndpointSection

    section = EndpointSection.model_validate(
        {
            "servers": [{"base_url": work["url"], "model": work["model"]}],
            "kind": "vllm",
            "stream": stream,
            "concurrency": work["concurrency"],
            "timeout": work["timeout"],
            "max_attempts": work["attempts"],
        }
    )

    def request(question: str) -> SampleRequest:
        return SampleRequest(question, "none", 0, lambda: [{"role": "user", "content": question}], 0.7, 1.0, 4096, 1)

    found: Answers = {}
    EndpointClient(section).answer(
        [request(question) for question in work["questions"]],
        lambda asked, answer: found.__setitem__(asked.problem_id, None if answer.error else answer.answer),
        lambda tokens: None,
    )
    return found


def openai_semaphore(work: dict[str, Any], *, stream: bool) -> Answers:
    """OpenAI's own client as its users share it among tasks: one client, a semaphore, its own retries."""
    import openai

    async def ask_all() -> Answers:
        semaphore, found = asyncio.Semaphore(work["concurrency"]), {}
        limits = {"timeout": work["timeout"], "max_retries": work["attempts"] - 1}
        async with openai.AsyncOpenAI(api_key="x", base_url=work["url"], **limits) as client:

            async def ask(question: str) -> None:
                options = {"model": work["model"], "messages": [{"role": "user", "content": question}], "max_tokens": 4096}
                async with semaphore:
                    try:
                        if stream:
                            chunks = await client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
                            pieces = [chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]
                            found[question] = "".join(pieces)
                        else:
                            completion = await client.chat.completions.create(**options)
                            found[question] = completion.choices[0].message.content
                    except Exception:
                        found[question] = None

            await asyncio.gather(*(ask(question) for question in work["questions"]))
        return found

    return asyncio.run(ask_all())


def lm_evaluation_harness(work: dict[str, Any]) -> Answers:
    """EleutherAI's harness: its model class for chat completions, which every task of it goes through."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion

    model = LocalChatCompletion(
        base_url=work["url"] + "/chat/completions",
        model=work["model"],
        num_concurrent=work["concurrency"],
        max_retries=work["attempts"],
        timeout=work["timeout"],
        tokenizer_backend=None,
        tokenized_requests=False,
        max_gen_toks=4096,
        eos_string="</s>",
    )
    prompts = [model.apply_chat_template([{"role": "user", "content": question}]) for question in work["questions"]]
    instances = [
        Instance("generate_until", {}, (prompt, {"until": [], "max_gen_toks": 4096}), number) for number, prompt in enumerate(prompts)
    ]
    texts = model.generate_until(instances, disable_tqdm=True)
    return dict(zip(work["questions"], [text or None for text in texts], strict=True))


def inspect(work: dict[str, Any]) -> Answers:
    """Inspect, a task without a scorer; its log is written, as it always is."""
    import inspect_ai
    from inspect_ai import Task
    from inspect_ai.dataset import Sample
    from inspect_ai.solver import generate

    os.environ["SCRIPTED_API_KEY"] = "x"
    with tempfile.TemporaryDirectory() as folder:
        (log,) = inspect_ai.eval(
            Task(dataset=[Sample(id=number, input=question) for number, question in enumerate(work["questions"])], solver=generate()),
            model=f"openai-api/scripted/{work['model']}",
            model_base_url=work["url"],
            display="none",
            log_dir=folder,
            fail_on_error=False,
            max_samples=work["concurrency"],
            max_tokens=4096,
            max_connections=work["concurrency"],
            max_retries=work["attempts"],
            attempt_timeout=int(work["timeout"]) or 1,
        )
        found: Answers = dict.fromkeys(work["questions"])
        for sample in log.samples or []:
            if not sample.error and sample.output.choices:
                found[work["questions"][int(sample.id)]] = sample.output.completion
    return found


CONTESTANTS: dict[str, tuple[Callable[[dict[str, Any]], Answers], tuple[str, ...]]] = {
    "ms4-train, streams": (lambda work: ours(work, stream=True), ("httpx",)),
    "ms4-train, whole replies": (lambda work: ours(work, stream=False), ("httpx",)),
    "openai + semaphore, streams": (lambda work: openai_semaphore(work, stream=True), ("openai",)),
    "openai + semaphore, whole replies": (lambda work: openai_semaphore(work, stream=False), ("openai",)),
    "lm-eval, whole replies": (lm_evaluation_harness, ("lm-eval", "aiohttp")),
    "inspect_ai, whole replies": (inspect, ("inspect-ai", "openai")),
}


def main() -> None:
    """``NAME``; the work comes as JSON on standard input, the result goes to standard output as the last line."""
    work = json.load(sys.stdin)
    ask, packages = CONTESTANTS[sys.argv[1]]
    # Imports and first use are not what is measured.
    ask({**work, "questions": work["questions"][:1]})
    before = time.perf_counter(), time.process_time()
    failure = None
    try:
        answers = ask(work)
    except Exception as error:
        # A program that ends with an error has given every answer up.
        answers, failure = {}, f"{type(error).__name__}: {error}"[:200]
    seconds, cpu = time.perf_counter() - before[0], time.process_time() - before[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    versions = {name: version(name) for name in packages}
    facts = {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak, "versions": versions, "failure": failure}
    print("\n" + json.dumps({**facts, "answers": answers}))


if __name__ == "__main__":
    main()
