"""One of the ranks of the engine's checks. ``run_ranks(mesh_worker.py, folder, expert_parallel_size, names...)`` writes folder/RANK.json.

Rank 0 compares with one process: an engine in this process over the whole model, with the same requests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from support.adapter_rows import WIDE, with_adapter
from support.mesh_runs import engine_model
from support.multimodal import cells_of, image_batch, random_pixels, sequence_ids, tiny_multimodal
from support.tokenizers import tiny_tokenizer

from ms4_train.config.schema import ParallelSection
from ms4_train.errors import MS4Error
from ms4_train.inference import Engine, GenerationRequest, SamplingParams, chat_request
from ms4_train.inference.mesh_engine import EngineRanks
from ms4_train.inference.request import FinishEvent
from ms4_train.inference.run import Run
from ms4_train.parallel import init_mesh, shard_experts

TOKENIZER = tiny_tokenizer()
CONFIG = engine_model().config
BATCH: dict[str, Any] = {"max_batch_size": 3, "max_context": 160, "token_budget": 40, "block_size": 8}


def prompts():
    """(request id, prompt): both modes, lengths 1 to 70."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for mode in ("none", "high"):
        for text in ("Hi", "7*3+8-5*9 mod 10 ="):
            request = chat_request(
                TOKENIZER, [{"role": "user", "content": text}], request_id="", reasoning_effort=mode, sampling=SamplingParams()
            )
            found.append(request.prompt_ids)
    found += [tuple(torch.randint(38, CONFIG.vocab_size, (length,), generator=generator).tolist()) for length in (1, 5, 33, 70)]
    return found


def told(completions):
    """What must not depend on the number of ranks."""
    return [[c.request_id, c.index, c.token_ids, c.finish_reason, c.stop_reason, c.thinking, c.generated_tokens] for c in completions]


def some_requests(**sampling):
    """Greedy ones, sampled ones, several answers, and one with a stop text that its greedy answer holds."""
    made = []
    for number, prompt in enumerate(prompts()):
        chance = {"temperature": 0.9, "seed": number} if number % 3 == 2 else {}
        made.append(GenerationRequest(f"r{number}", prompt, SamplingParams(max_tokens=9 + number, **{**chance, **sampling})))
    made.append(GenerationRequest("three", prompts()[1], SamplingParams(max_tokens=7, temperature=1.0, seed=3), n=3))
    return made


def expected(requests, model=None, **settings):
    return Engine(model or engine_model(), TOKENIZER, **{**BATCH, **settings}).generate(requests)


def check_answers(ranks):
    """Greedy and sampled answers, both modes, mixed lengths, n > 1; fewer requests than ranks; a stop text; counters."""
    requests = some_requests()
    one = expected(requests)
    engine = ranks.engine(**BATCH)
    found = engine.generate(requests)
    report: dict[str, Any] = {"answers": told(found) == told(one), "distinct": len({tuple(c.token_ids) for c in found})}
    report["stats"] = [engine.stats.generated_tokens, sum(c.generated_tokens for c in one), engine.stats.finished.get("length", 0) > 0]
    report["few"] = told(engine.generate(requests[3:4])) == told(one[3:4])
    text = TOKENIZER.decode(one[7].token_ids[2:4])
    stopping = [dataclasses.replace(requests[7], sampling=dataclasses.replace(requests[7].sampling, stop=(text,)))]
    stopped = engine.generate(stopping)
    report["stop"] = [told(stopped) == told(expected(stopping)), stopped[0].finish_reason]
    streamed = engine.stream(requests[0])
    report["stream"] = list(streamed) == one[0].token_ids and told([streamed.completion]) == told(one[:1])
    report["idle"] = [engine.is_open, engine.has_work, engine.stats.running, engine.stats.blocks_total]
    return report


def check_logprobs(ranks):
    """Logprobs travel whole; fp32, so they are close to those of one process."""
    requests = some_requests(logprobs=2, prompt_logprobs=1)[:3]
    one: list[Any] = expected(requests)
    found: list[Any] = ranks.engine(**BATCH).generate(requests)
    error = 0.0
    for ours, theirs in zip(found, one, strict=True):
        assert None not in (ours.logprobs, ours.prompt_logprobs, theirs.logprobs, theirs.prompt_logprobs)
        assert ours.prompt_logprobs[0] is None
        pairs = [*zip(ours.logprobs, theirs.logprobs, strict=True), *zip(ours.prompt_logprobs[1:], theirs.prompt_logprobs[1:], strict=True)]
        error = max(error, *(abs(a.logprob - b.logprob) for a, b in pairs))
        assert all((a.token_id, a.rank, [t for t, _ in a.top]) == (b.token_id, b.rank, [t for t, _ in b.top]) for a, b in pairs)
    return {"answers": told(found) == told(one), "error": error}


def check_steps(ranks):
    """Requests that come and go while others run: cancelled in the queue and on a rank, submitted late, ids in use."""
    engine, requests = ranks.engine(**BATCH), some_requests(ignore_eos=True)
    report: dict[str, Any] = {}
    ends = {}
    with engine:
        for request in [
            *requests[:8],
            *(dataclasses.replace(request, request_id=f"late {request.request_id}") for request in requests[:8]),
        ]:
            engine.submit(request)
        report["asked before"] = ranks.is_stopping
        engine.cancel("late r7")  # waits still
        events = engine.step()
        report["asked to stop"] = ranks.is_stopping
        report["same id"] = _refused(lambda: engine.submit(requests[0]))
        engine.cancel("r6")
        engine.cancel("nobody")
        report["stats"] = engine.stats.running > 0 and engine.stats.waiting > 0
        engine.submit(requests[8])
        while engine.has_work:
            events += engine.step()
        for event in events:
            if isinstance(event, FinishEvent):
                ends[event.completion.request_id, event.completion.index] = event.completion
    report["reasons"] = [ends["late r7", 0].finish_reason, ends["r6", 0].finish_reason, len(ends["r6", 0].token_ids) < 15]
    one = {c.request_id: c.token_ids for c in expected(requests[:6])}
    report["others"] = all(ends[f"{late}{name}", 0].token_ids == tokens for name, tokens in one.items() for late in ("", "late "))
    report["three"] = len([key for key in ends if key[0] == "three"])
    return report


def check_errors(ranks):
    """What is refused on rank 0, what goes wrong on a rank, and that the ranks go on after each."""
    requests = some_requests()
    engine = ranks.engine(**BATCH)
    report: dict[str, Any] = {
        "long": _refused(lambda: engine.generate([GenerationRequest("x", (40,) * 200)])),
        "closed": _refused(engine.step),
        "batch": _refused(lambda: ranks.engine(max_batch_size=0)),
        "native": _refused(lambda: ranks.engine(**BATCH, runner="native").open()),
        "memory": _refused(lambda: ranks.engine(**BATCH, cache_tokens=8).open()),
    }
    engine = ranks.engine(**BATCH)
    failing = [GenerationRequest(f"fail {number}", (40, 41 + number), SamplingParams(max_tokens=40)) for number in range(8)]
    report["fails"] = _refused(lambda: engine.generate([*requests[:2], *failing]))
    report["open"] = engine.is_open
    report["after"] = told(engine.generate(requests[:2])) == told(expected(requests[:2]))

    def interrupt(progress):
        raise ValueError("enough")

    with contextlib.suppress(ValueError):
        engine.generate(requests, on_progress=interrupt)
    report["again"] = told(engine.generate(requests[:2])) == told(expected(requests[:2]))
    return report


def check_adapters(ranks):
    """Adapters by name, on the experts too, in one batch with the model as it stands; loaded and dropped on all ranks."""
    folder = Path(sys.argv[1]) / "adapters"
    engine = ranks.engine(**BATCH)
    engine.load_adapter("wide", folder / "wide")
    report: dict[str, Any] = {"taken": _refused(lambda: engine.load_adapter("wide", folder / "wide")), "missing": ""}
    report["missing"] = _refused(lambda: engine.load_adapter("none", folder / "none"))
    requests = [dataclasses.replace(request, adapter="wide" if number % 2 else None) for number, request in enumerate(some_requests())]
    whole = Engine(engine_model(), TOKENIZER, **BATCH)
    whole.load_adapter("wide", folder / "wide")
    one = whole.generate(requests)
    report["answers"] = told(engine.generate(requests)) == told(one)
    report["matters"] = told(one) != told(expected(some_requests()))
    engine.drop_adapter("wide")
    report["dropped"] = _refused(lambda: engine.generate(requests))
    report["plain"] = told(engine.generate(some_requests()[:3])) == told(expected(some_requests()[:3]))
    return report


def check_acting(ranks):
    """An adapter that acts on all rows, as that of a run in training, its experts' factors spread as well."""
    return {"answers": told(ranks.engine(**BATCH).generate(some_requests())) == told(expected(some_requests(), adapted()))}


def check_deterministic(ranks):
    """The same bits alone, in company, and wherever the request lives."""
    sampling = {"logprobs": 1, "ignore_eos": True}
    requests = [GenerationRequest(str(number), prompt, SamplingParams(max_tokens=5, **sampling)) for number, prompt in enumerate(prompts())]
    engine = ranks.engine(**BATCH, deterministic=True)
    bits = {}
    for order in ([requests[2]], [requests[3]], requests, requests[::-1]):
        for completion in engine.generate(order):
            bits.setdefault(completion.request_id, []).append([completion.token_ids, completion.logprobs])
    return {"times": [len(bits["2"]), len(bits["3"])], "same": all(found == each[0] for each in bits.values() for found in each)}


def check_images(ranks):
    """Prompts with images, on ranks that did not preprocess them."""
    vision = seeing().vision_config
    requests = []
    for number, parts in enumerate([(3, (1, 2), 4, (2, 2), 3), (5, (3, 1), 2), (7,), (1, (2, 1), 1)]):
        pixels = random_pixels(cells_of(parts), vision, number)
        ids = tuple(sequence_ids(parts, CONFIG.vocab_size, number).tolist())
        requests.append(GenerationRequest(str(number), ids, SamplingParams(max_tokens=8), image_batch(pixels, vision) if pixels else None))
    return {"answers": told(ranks.engine(**BATCH).generate(requests)) == told(expected(requests, seeing()))}


def adapted():
    return with_adapter(WIDE, 7, make=engine_model, name="live")


def seeing():
    return tiny_multimodal(CONFIG)


MODELS = {"acting": adapted, "images": seeing}


def _refused(call):
    try:
        call()
    except MS4Error as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def fail_on_demand():
    """Requests of this name break the work of rank 1, as a defect would, before the pass that all compute."""
    original = Run._prepare

    def prepare(self, pieces):
        if os.environ["RANK"] == "1" and any(piece.sequence.request.request_id.startswith("fail") for piece in pieces):
            raise MemoryError("no room")
        return original(self, pieces)

    Run._prepare = prepare


def die(ranks, rank, how):
    """Leave in the middle of a generation: by an end of the process, or by an error."""

    def interrupt(progress):
        if progress.steps == 3:
            raise ValueError("enough") if how == "error" else SystemExit(7)

    if ranks.mesh.rank == rank == 0:
        return ranks.lead(lambda: ranks.engine(**BATCH).generate(some_requests(), on_progress=interrupt))
    if ranks.mesh.rank == rank:
        steps = iter(range(100))
        original = Run._prepare

        def prepare(self, pieces):
            return os._exit(0) if next(steps) == 3 else original(self, pieces)

        Run._prepare = prepare
    return ranks.lead(lambda: told(ranks.engine(**BATCH).generate(some_requests(ignore_eos=True))))


def main() -> None:
    folder, size, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    mesh = init_mesh(ParallelSection(expert_parallel_size=size))
    fail_on_demand()
    report = {}
    for name in names:
        model = MODELS.get(name, engine_model)()
        shard_experts(model, mesh)
        ranks = EngineRanks(model, TOKENIZER, mesh)
        if name == "steps" and mesh.rank == 1:
            asked = itertools.count()
            ranks.should_stop = lambda asked=asked: next(asked) > 1  # not when the engine is made and opened, but after the first step
        if name.startswith("die"):
            _, rank, how = name.split("-")
            try:
                die(ranks, int(rank), how)
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
                report[name] = [text, getattr(error, "exit_code", None), getattr(error, "on_all_ranks", None)]
            continue
        report[name] = ranks.lead(lambda name=name, ranks=ranks: globals()[f"check_{name}"](ranks))
        report[f"{name} experts"] = model.model.layers[0].mlp.experts.num_local_experts
    (folder / f"{mesh.rank}.json").write_text(json.dumps(report))
    mesh.close()


if __name__ == "__main__":
    main()
