"""What an open engine does to the model it borrows (nothing that outlasts it), and how it behaves step by step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ms4_train.adapters import adapter_tensors, attach
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import EngineError
from ms4_train.inference import Engine, Event, FinishEvent, GenerationRequest, SamplingParams
from ms4_train.model import Mistral4ForCausalLM, SequenceLayout

RUNNERS = ["native", "modules"]


def loss_gradients(model: Mistral4ForCausalLM) -> dict[str, torch.Tensor]:
    """Gradients of next-token loss on fixed tokens."""
    model.zero_grad(set_to_none=True)
    ids = torch.arange(40, 70)
    logits_tv = model.logits(model(ids, SequenceLayout.from_lengths([10, 20])))
    nn.functional.cross_entropy(logits_tv[:-1], ids[1:]).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def requests_of(prompts: list[tuple[int, ...]], **sampling) -> list[GenerationRequest]:
    return [GenerationRequest(str(index), prompt, SamplingParams(**{"max_tokens": 4, **sampling})) for index, prompt in enumerate(prompts)]


@pytest.mark.parametrize("runner", RUNNERS)
def test_training_goes_on_after_generation_as_if_nothing_had_happened(model, tokenizer, prompts, runner) -> None:
    """Also when generation comes first, so that nothing lazily made under inference mode reaches autograd."""
    model.train()
    Engine(model, tokenizer, runner=runner).generate(requests_of(prompts))
    after = loss_gradients(model)
    again = loss_gradients(model)
    Engine(model, tokenizer, runner=runner).generate(requests_of(prompts))
    third = loss_gradients(model)
    assert after.keys() == dict(model.named_parameters()).keys()
    for name, gradient in after.items():
        assert torch.equal(gradient, again[name])
        assert torch.equal(gradient, third[name])


@pytest.mark.parametrize("runner", RUNNERS)
def test_generation_uses_the_weights_of_the_moment(model, tokenizer, prompts, runner) -> None:
    """Nothing made of weights, no cached prompt either, outlives a call: a change between calls must show."""
    engine = Engine(model, tokenizer, runner=runner)
    before = engine.generate(requests_of(prompts))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.kv_b_proj.weight.mul_(-1)
    after = engine.generate(requests_of(prompts))
    single = [engine.generate([wanted])[0] for wanted in requests_of(prompts)]
    assert [completion.token_ids for completion in after] == [completion.token_ids for completion in single]
    assert [completion.token_ids for completion in after] != [completion.token_ids for completion in before]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("training", [True, False])
def test_each_modules_mode_and_gradients_are_as_before(model, tokenizer, prompts, training: bool, runner) -> None:
    model.train(training)
    model.model.layers[0].mlp.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    gradients = loss_gradients(model)
    seen: list[bool] = []
    Engine(model, tokenizer, runner=runner).generate(requests_of(prompts), on_finish=lambda _: seen.append(model.training))
    assert seen
    assert not any(seen)
    assert {name: module.training for name, module in model.named_modules()} == modes
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradients[name])
        assert parameter.requires_grad


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_a_hook_passes_through_and_the_model_is_given_back(model, tokenizer, prompts, error: type[BaseException]) -> None:
    model.train()
    engine = Engine(model, tokenizer)

    def fail(_: object) -> None:
        raise error("from the hook")

    with pytest.raises(error, match="from the hook"):
        engine.generate(requests_of(prompts), on_finish=fail)
    assert model.training
    assert not engine.is_open
    assert len(engine.generate(requests_of(prompts[:2]))) == 2


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_live_adapter_counts_unmerged_and_untouched(model, tokenizer, prompts, runner) -> None:
    section = AdapterSection(
        r=4, lora_alpha=8, target_modules=["q_b_proj", "kv_b_proj", "o_proj"], target_parameters=["mlp.experts.gate_up_proj"]
    )
    plain = [completion.token_ids for completion in Engine(model, tokenizer, runner=runner).generate(requests_of(prompts, max_tokens=8))]
    attach(model, section)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in adapter_tensors(model).values():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    kept = {name: tensor.clone() for name, tensor in adapter_tensors(model).items()}
    adapted = [completion.token_ids for completion in Engine(model, tokenizer, runner=runner).generate(requests_of(prompts, max_tokens=8))]
    assert adapted != plain
    assert all(torch.equal(tensor, kept[name]) for name, tensor in adapter_tensors(model).items())


def collect(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def test_steps_report_every_token_once_and_in_order(model, tokenizer, prompts) -> None:
    wanted = requests_of(prompts, max_tokens=9, logprobs=2)
    whole = {completion.request_id: completion for completion in Engine(model, tokenizer).generate(wanted)}
    with Engine(model, tokenizer, max_batch_size=3) as engine:
        for request in wanted:
            engine.submit(request)
        events = collect(engine)
    for name, completion in whole.items():
        mine = [event for event in events if not isinstance(event, FinishEvent) and event.request_id == name]
        assert [token for event in mine for token in event.token_ids] == completion.token_ids
        assert [entry.token_id for event in mine for entry in event.logprobs] == [entry.token_id for entry in completion.logprobs or []]
        assert len(completion.logprobs or []) == completion.generated_tokens
    assert len([event for event in events if isinstance(event, FinishEvent)]) == len(wanted)


def test_a_cancelled_request_ends_at_once_and_frees_its_blocks(model, tokenizer, prompts) -> None:
    with Engine(model, tokenizer, max_batch_size=2) as engine:
        for request in requests_of(prompts[:4], max_tokens=500):
            engine.submit(request)
        for _ in range(5):
            engine.step()
        engine.cancel("0")
        engine.cancel("3")  # still waiting
        engine.cancel("unknown")
        ended = [event.completion for event in engine.step() if isinstance(event, FinishEvent)]
        assert sorted((completion.request_id, completion.finish_reason) for completion in ended) == [("0", "cancelled"), ("3", "cancelled")]
        assert len(next(completion for completion in ended if completion.request_id == "0").token_ids) >= 3
        engine.cancel("1")
        engine.cancel("2")
        engine.step()
        assert not engine.has_work
        assert engine.stats.blocks_used == 0
        assert engine.stats.finished == {"cancelled": 4}


def test_a_closed_engine_takes_nothing(model, tokenizer, prompts) -> None:
    engine = Engine(model, tokenizer)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(requests_of(prompts)[0])
    with engine:
        engine.submit(requests_of(prompts)[0])
        with pytest.raises(EngineError, match="twice"):
            engine.submit(requests_of(prompts)[0])
        with pytest.raises(EngineError, match="open already"):
            engine.open()


@pytest.mark.parametrize("runner", RUNNERS)
def test_preemption_and_prefix_hits_change_no_token_and_no_logprob(model, tokenizer, prompts, runner) -> None:
    """Blocks for two and a half answers, thirteen requests, most beginnings seen before; logprobs within 1e-4."""
    wanted = requests_of([*prompts, *prompts[:6]], max_tokens=24, logprobs=1)
    whole = Engine(model, tokenizer, runner=runner, prefix_cache=False, max_batch_size=1).generate(wanted)
    tight = Engine(model, tokenizer, runner=runner, max_batch_size=8, max_context=128, cache_tokens=192, block_size=8)
    mixed = tight.generate(wanted)
    assert tight.stats.preemptions > 3
    assert tight.stats.cached_tokens > 50
    for one, other in zip(whole, mixed, strict=True):
        assert one.token_ids == other.token_ids
        for left, right in zip(one.logprobs or [], other.logprobs or [], strict=True):
            assert abs(left.logprob - right.logprob) < 1e-4
            assert [token for token, _ in left.top] == [token for token, _ in right.top]


@pytest.mark.parametrize("runner", RUNNERS)
def test_samples_of_one_prompt_equal_requests_with_their_seeds(model, tokenizer, prompts, runner) -> None:
    from ms4_train.inference.sampling import sample_seed

    prompt = prompts[-1]
    sampling = SamplingParams(max_tokens=10, temperature=1.0, seed=7)
    engine = Engine(model, tokenizer, runner=runner, max_batch_size=4)
    samples = engine.generate([GenerationRequest("n", prompt, sampling, n=6)])
    assert [sample.index for sample in samples] == list(range(6))
    assert engine.stats.steps < 40
    singles = [
        GenerationRequest(str(index), prompt, SamplingParams(max_tokens=10, temperature=1.0, seed=sample_seed(7, index)))
        for index in range(6)
    ]
    for sample, single in zip(samples, Engine(model, tokenizer, runner=runner).generate(singles), strict=True):
        assert sample.token_ids == single.token_ids
    assert len({tuple(sample.token_ids) for sample in samples}) > 3


@pytest.mark.parametrize("runner", RUNNERS)
def test_prompt_logprobs_are_the_models_own(model, tokenizer, prompts, runner) -> None:
    """Against one plain forward pass; 1e-4 as for all logprobs. Chunks of seven tokens, and a prompt that the cache knows already."""
    prompt = prompts[-1]
    with torch.no_grad():
        logits_tv = model.logits(model(torch.tensor(prompt), SequenceLayout.from_lengths([len(prompt)])))[:, : tokenizer.vocab_size]
    expected = torch.log_softmax(logits_tv.double(), -1)[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    for budget in (None, 7):
        with Engine(model, tokenizer, runner=runner, token_budget=budget, max_batch_size=2) as engine:
            for name, scored in (("first", None), ("scored", 3)):
                engine.submit(GenerationRequest(name, prompt, SamplingParams(max_tokens=2, prompt_logprobs=scored)))
                (completion,) = [event.completion for event in collect(engine) if isinstance(event, FinishEvent)]
        entries = completion.prompt_logprobs
        assert entries is not None
        assert entries[0] is None
        assert len(entries) == len(prompt)
        found = torch.tensor([entry.logprob for entry in entries[1:] if entry is not None], dtype=torch.float64)
        assert (found - expected).abs().max() < 1e-4
        assert all(entry is not None and len(entry.top) == 3 for entry in entries[1:])
