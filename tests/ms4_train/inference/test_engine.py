"""The engine's answers: the same tokens as plain generation and as transformers, in any company; endings, streams, errors."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.models import hf_twin, tiny_config, tiny_model

from ms4_train.errors import EngineError
from ms4_train.inference import Completion, Engine, GenerationRequest, Progress, SamplingParams, TokenStream
from ms4_train.model import Mistral4ForCausalLM, SequenceLayout

if TYPE_CHECKING:
    from ms4_train.chat import ChatTokenizer

Prompts = list[tuple[int, ...]]


def request(name: object, prompt_ids: tuple[int, ...], **sampling: Any) -> GenerationRequest:
    return GenerationRequest(str(name), prompt_ids, SamplingParams(**sampling))


def by_id(completions: list[Completion]) -> dict[str, list[int]]:
    return {completion.request_id: completion.token_ids for completion in completions}


def without_end(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id)] if eos_id in ids else ids


class TestGreedyTokens:
    """fp32 throughout: exactness is promised there."""

    def test_one_at_a_time_equals_recomputing_the_whole_sequence_for_each_token(self, model, tokenizer, prompts, alone) -> None:
        engine = Engine(model, tokenizer)
        for index, prompt in enumerate(prompts):
            (completion,) = engine.generate([request(index, prompt, max_tokens=20)])
            assert completion.token_ids == without_end(alone(prompt, 20), tokenizer.eos_id)

    @pytest.mark.parametrize(
        ("max_batch_size", "token_budget"),
        [(64, None), (5, None), (3, 40), (2, 2), (7, 11)],
        ids=["all", "five", "chunked", "crawl", "odd"],
    )
    def test_company_staggered_arrival_and_chunking_change_nothing(
        self, model, tokenizer, prompts, max_batch_size: int, token_budget: int | None
    ) -> None:
        """Both modes and lengths from 1 to 90 in one batch; different max_tokens make rows leave and others take their place."""
        rng = random.Random(max_batch_size)
        copies = 1 if token_budget == 2 else 3
        requests = [
            request(f"{index}-{copy}", prompt, max_tokens=6 + 5 * copy) for index, prompt in enumerate(prompts) for copy in range(copies)
        ]
        longest = {index: Engine(model, tokenizer).generate([request(0, prompt, max_tokens=16)])[0] for index, prompt in enumerate(prompts)}
        rng.shuffle(requests)
        completions = Engine(model, tokenizer, max_batch_size=max_batch_size, token_budget=token_budget).generate(requests)
        assert [completion.request_id for completion in completions] == [wanted.request_id for wanted in requests]
        for wanted, completion in zip(requests, completions, strict=True):
            expected = longest[int(wanted.request_id.split("-")[0])].token_ids
            assert completion.token_ids == expected[: wanted.sampling.max_tokens]

    def test_transformers_generates_the_same_tokens(self, tokenizer, prompts) -> None:
        """64 greedy tokens, past the Llama-4 boundary at 64 positions, against transformers' own generate, padded on the left."""
        from ms4_train.model import RopeParameters

        rope = RopeParameters(factor=16.0, original_max_position_embeddings=64, max_position_embeddings=1024)
        model = tiny_model(tiny_config(vocab_size=tokenizer.vocab_size, rope_parameters=rope), seed=3)
        oracle = hf_twin(model)
        requests = [request(index, prompt, max_tokens=64) for index, prompt in enumerate(prompts)]
        completions = Engine(model, tokenizer, max_batch_size=8).generate(requests)
        assert sum(len(completion.token_ids) for completion in completions) > 32 * len(prompts), "answers too short to mean much"
        longest = max(len(prompt) for prompt in prompts)
        padded = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        output = oracle.generate(
            padded, attention_mask=mask, max_new_tokens=64, do_sample=False, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.eos_id
        )
        for row, completion in enumerate(completions):
            assert completion.token_ids == without_end(output[row, longest:].tolist(), tokenizer.eos_id)

    def test_a_wrong_cache_would_be_noticed(self, model, tokenizer, prompts, monkeypatch) -> None:
        """Negative control: if all blocks went by one name, prompts would begin with others' latents, and choose other tokens."""
        requests = [request(index, prompt, max_tokens=4 + index) for index, prompt in enumerate(prompts)]
        right = by_id(Engine(model, tokenizer, max_batch_size=4, block_size=8).generate(requests))
        monkeypatch.setattr("ms4_train.inference.sequence.block_name", lambda before, token_ids, images: b"%d" % (len(before) % 7))
        assert by_id(Engine(model, tokenizer, max_batch_size=4, block_size=8).generate(requests)) != right


class TestSampledTokens:
    @pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9}])
    def test_the_seed_decides_whatever_the_company(self, model, tokenizer, prompts, sampling: dict) -> None:
        engine = Engine(model, tokenizer, max_batch_size=6)
        requests = [request(index, prompt, max_tokens=12, seed=index, **sampling) for index, prompt in enumerate(prompts)]
        single = {wanted.request_id: engine.generate([wanted])[0].token_ids for wanted in requests}
        greedy_company = [request(f"g{index}", prompt, max_tokens=9) for index, prompt in enumerate(prompts)]
        mixed = [one for pair in zip(reversed(requests), greedy_company, strict=True) for one in pair]
        together = by_id(engine.generate(mixed))
        assert {name: together[name] for name in single} == single
        others = by_id(
            engine.generate([request(index, prompt, max_tokens=12, seed=index + 1000, **sampling) for index, prompt in enumerate(prompts)])
        )
        assert sum(others[name] != single[name] for name in single) > len(single) // 2, "the seed plays no part"

    def test_first_tokens_follow_the_models_softmax(self, model, tokenizer, prompts) -> None:
        """3000 answers of one token; total variation from the model's own distribution below 0.09 (its expectation is about 0.06)."""
        prompt = prompts[0]
        with torch.no_grad():
            logits_v = model.logits(model(torch.tensor(prompt), SequenceLayout.from_lengths([len(prompt)]))[-1:])[0]
        temperature = 0.5
        probability_v = torch.softmax(logits_v / temperature, -1)
        assert probability_v.max() < 0.9, "nearly greedy: nothing is tested"
        requests = [request(seed, (*prompt,), temperature=temperature, seed=seed, max_tokens=1) for seed in range(3000)]
        completions = Engine(model, tokenizer, max_batch_size=500, token_budget=20_000).generate(requests)
        tokens = [completion.token_ids[0] if completion.token_ids else tokenizer.eos_id for completion in completions]
        observed_v = torch.bincount(torch.tensor(tokens), minlength=len(probability_v)) / 3000
        assert (observed_v - probability_v).abs().sum() / 2 < 0.09


class TestEndings:
    def test_max_tokens_end_token_and_stop_tokens(self, model, tokenizer, prompts, alone) -> None:
        prompt = prompts[1]
        expected = alone(prompt, 12)
        end = next(position for position in range(3, 12) if expected[position] not in expected[:position])
        engine = Engine(model, tokenizer)
        (full,) = engine.generate([request("full", prompt, max_tokens=12)])
        assert (full.token_ids, full.finish_reason, full.stop_reason) == (expected, "length", None)
        assert (full.prompt_tokens, full.generated_tokens) == (len(prompt), 12)
        assert full.seconds > 0
        (stopped,) = engine.generate([request("stop", prompt, max_tokens=12, stop_token_ids=(expected[end],))])
        assert (stopped.token_ids, stopped.finish_reason, stopped.stop_reason) == (expected[:end], "stop", str(expected[end]))
        assert stopped.generated_tokens == end + 1
        with torch.no_grad():  # from here on the model prefers the end token wherever it preferred expected[end]
            model.lm_head.weight[tokenizer.eos_id] = model.lm_head.weight[expected[end]] * 1.01
        (ended,) = engine.generate([request("end", prompt, max_tokens=12)])
        assert ended.finish_reason == "stop"
        assert ended.stop_reason is None
        assert tokenizer.eos_id not in ended.token_ids

    def test_stop_texts_are_excluded_and_the_first_to_appear_wins(self, model, tokenizer, prompts, alone) -> None:
        for prompt in prompts:
            expected = alone(prompt, 24)
            text = tokenizer.decode(expected, keep_special=True)
            if tokenizer.eos_id in expected or len(text) < 20:
                continue
            late, early = text[15:18], text[9:12]
            first = min(text.index(late), text.index(early))
            (completion,) = Engine(model, tokenizer).generate([request("x", prompt, max_tokens=24, stop=(late, early))])
            assert completion.finish_reason == "stop"
            assert completion.stop_reason in (late, early)
            assert tokenizer.decode(completion.token_ids, keep_special=True) == text[:first]
            break
        else:
            pytest.fail("no prompt gives a text to stop in")

    def test_finish_and_progress_hooks(self, model, tokenizer, prompts) -> None:
        requests = [request(index, prompt, max_tokens=2 + index % 3) for index, prompt in enumerate(prompts)]
        finished: list[str] = []
        progress: list[Progress] = []
        completions = Engine(model, tokenizer, max_batch_size=4).generate(
            requests, on_finish=lambda completion: finished.append(completion.request_id), on_progress=progress.append
        )
        assert sorted(finished) == sorted(wanted.request_id for wanted in requests)
        assert finished != [wanted.request_id for wanted in requests], "every answer came in order: nothing overtook"
        last = progress[-1]
        assert (last.finished, last.running, last.waiting) == (len(requests), 0, 0)
        assert last.generated_tokens == sum(completion.generated_tokens for completion in completions)
        assert last.prompt_tokens == sum(len(prompt) for prompt in prompts)
        assert last.steps == len(progress)
        assert all(step.running <= 4 for step in progress)
        assert max(step.cache_bytes for step in progress) > last.cache_bytes == 0, "ended answers hold blocks"

    def test_no_requests_is_no_work(self, model, tokenizer) -> None:
        assert Engine(model, tokenizer).generate([]) == []


class TestStream:
    def test_a_stream_gives_the_tokens_of_generate_and_then_the_completion(self, model, tokenizer, prompts) -> None:
        engine = Engine(model, tokenizer)
        for stop in ((), ("e", "ab")):
            wanted = request("s", prompts[2], max_tokens=15, stop=stop, temperature=1.0, seed=5)
            (whole,) = engine.generate([wanted])
            stream = engine.stream(wanted)
            assert stream.completion is None
            assert list(stream) == whole.token_ids
            assert stream.completion is not None
            assert stream.completion.token_ids == whole.token_ids
            assert stream.completion.finish_reason == whole.finish_reason

    def test_an_open_stream_keeps_the_engine_busy_until_it_is_closed(self, model, tokenizer, prompts) -> None:
        engine = Engine(model, tokenizer)
        with engine.stream(request("a", prompts[0], max_tokens=9)) as stream:
            next(stream)
            assert not torch.is_inference_mode_enabled(), "the stream leaked inference mode to its reader"
            with pytest.raises(EngineError, match="already"):
                engine.generate([request("b", prompts[0])])
        assert len(engine.generate([request("b", prompts[0], max_tokens=2)])) == 1
        with pytest.raises(EngineError, match="max_context"):
            engine.stream(request("c", prompts[0], max_tokens=10**6))
        assert isinstance(engine.stream(request("d", prompts[0])), TokenStream)
        assert len(engine.generate([request("e", prompts[0], max_tokens=2)])) == 1, "a stream that was never read keeps the engine"


class TestRefusals:
    @pytest.mark.parametrize(
        ("requests", "words"),
        [
            ([request("a", (1,) * 30, max_tokens=71)], "30 prompt tokens and max_tokens 71 make 101, above max_context 100"),
            ([request("a", (1,), max_tokens=9), request("b", (1,), max_tokens=9), request("a", (2,), max_tokens=9)], "twice"),
            ([request("a", (1, 438), max_tokens=9)], "token 438"),
        ],
    )
    def test_requests_that_cannot_be_served_are_refused_before_anything_is_computed(self, model, tokenizer, requests, words) -> None:
        seen: list[Completion] = []
        with pytest.raises(EngineError, match=words) as caught:
            Engine(model, tokenizer, max_context=100).generate([request("ok", (1,), max_tokens=1), *requests], on_finish=seen.append)
        assert caught.value.key == "a"
        assert caught.value.fix
        assert not seen

    def test_the_whole_context_can_be_used_and_the_models_limit_holds(self, tokenizer) -> None:
        model = tiny_model(tiny_config(vocab_size=tokenizer.vocab_size, max_position_embeddings=40))
        engine = Engine(model, tokenizer, max_context=10_000)
        (completion,) = engine.generate([request("a", (5,) * 30, max_tokens=10)])
        assert completion.generated_tokens <= 10
        with pytest.raises(EngineError, match="above max_context 40"):
            engine.generate([request("a", (5,) * 30, max_tokens=11)])

    @pytest.mark.parametrize("bounds", [{"max_batch_size": 0}, {"max_context": 1}, {"token_budget": 31}])
    def test_bounds_that_make_no_engine(self, model, tokenizer, bounds: dict) -> None:
        with pytest.raises(EngineError) as caught:
            Engine(model, tokenizer, **bounds)
        assert caught.value.key in bounds

    def test_a_tokenizer_with_more_tokens_than_the_model(self, tokenizer: ChatTokenizer) -> None:
        with pytest.raises(EngineError, match="tokenizer has 438 tokens"):
            Engine(tiny_model(tiny_config(vocab_size=100)), tokenizer)

    def test_tokens_without_a_meaning_are_never_chosen(self, tokenizer: ChatTokenizer) -> None:
        model = tiny_model(tiny_config(vocab_size=512))
        with torch.no_grad():
            model.lm_head.weight[tokenizer.vocab_size :] *= 50
        requests = [request(seed, (9, 8, 7), max_tokens=20, temperature=float(seed), seed=seed) for seed in range(8)]
        completions = Engine(model, tokenizer).generate(requests)
        assert max(max(completion.token_ids, default=0) for completion in completions) < tokenizer.vocab_size


def test_a_model_that_computes_nothing_finite_is_an_error_and_leaves_the_engine_usable(
    model: Mistral4ForCausalLM, tokenizer, prompts
) -> None:
    engine = Engine(model, tokenizer)
    kept = model.model.norm.weight.detach().clone()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(EngineError, match="not finite"):
        engine.generate([request("bad", prompts[0])])
    with torch.no_grad():
        model.model.norm.weight.copy_(kept)
    assert engine.generate([request("good", prompts[0], max_tokens=3)])[0].generated_tokens <= 3
