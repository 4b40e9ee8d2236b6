"""The engine as a client, on a random model of the real architecture."""

import dataclasses
import json

import pytest
from support.models import tiny_config, tiny_model
from support.tokenizers import tiny_tokenizer

from ms4_evals.clients.base import SampleRequest
from ms4_evals.clients.engine import EngineClient
from ms4_train.chat import parse_answer
from ms4_train.errors import EngineError
from ms4_train.inference import Engine, SamplingParams, chat_request

RANKS = 260


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(RANKS)


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tiny_config(vocab_size=tokenizer.vocab_size))


def requests(count=4):
    return [
        SampleRequest(
            problem_id=f"p/{number}",
            mode=mode,
            sample_index=0,
            prompt=lambda number=number: [{"role": "user", "content": f"{number}+{number}"}],
            temperature=0.7,
            top_p=0.9,
            max_tokens=12 if mode == "high" else 5,
            seed=1000 + number,
        )
        for number in range(count)
        for mode in ("high", "none")
    ]


def answers(client, wanted):
    found, progress = {}, []
    client.answer(wanted, lambda request, answer: found.setdefault(request.request_id, (request, answer)), progress.append)
    assert progress == sorted(progress)
    return found


def test_every_answer_is_what_the_engine_gives_to_that_request_alone(model, tokenizer):
    """Both modes in a batch of 3 against one request at a time: seed, mode, sampling and parsing all reach the right sample."""
    wanted = requests()
    found = answers(EngineClient(model, tokenizer, identity={}, max_batch_size=3), wanted)
    assert len(found) == len(wanted)
    engine = Engine(model, tokenizer, max_batch_size=1)
    for request, answer in found.values():
        sampling = SamplingParams(temperature=0.7, top_p=0.9, seed=request.seed, max_tokens=request.max_tokens)
        alone = chat_request(tokenizer, request.messages, request_id="x", reasoning_effort=request.mode, sampling=sampling)
        (completion,) = engine.generate([alone])
        parsed = parse_answer(completion.token_ids, tokenizer)
        assert (answer.thinking, answer.answer) == (parsed.thinking, parsed.content)
        assert (answer.usage_thinking_tokens, answer.usage_tokens) == (parsed.thinking_tokens, completion.generated_tokens)
        assert answer.prompt_tokens == len(alone.prompt_ids)
        assert answer.finish_reason == completion.finish_reason
        assert answer.error is None


def test_the_prompt_hash_is_of_what_the_model_read(model, tokenizer):
    wanted = requests(2)
    found = answers(EngineClient(model, tokenizer, identity={}), wanted)
    hashes = {request_id: answer.prompt_hash for request_id, (_, answer) in found.items()}
    assert len(set(hashes.values())) == 4, "question and mode both change it"
    other_seed = [dataclasses.replace(request, seed=5) for request in wanted]
    again = answers(EngineClient(model, tokenizer, identity={}), other_seed)
    assert {request_id: answer.prompt_hash for request_id, (_, answer) in again.items()} == hashes


def test_a_request_beyond_the_context_is_refused_before_anything_is_drawn(model, tokenizer):
    client = EngineClient(model, tokenizer, identity={}, max_context=10)
    with pytest.raises(EngineError, match="max_context"):
        answers(client, requests(1))
    too_long = [dataclasses.replace(requests(1)[0], max_tokens=model.config.max_position_embeddings)]
    with pytest.raises(EngineError, match="limit"):
        answers(EngineClient(model, tokenizer, identity={}), too_long)


def test_identity_and_versions(model, tokenizer):
    client = EngineClient(model, tokenizer, identity={"weights": "w"})
    assert client.identity() == {"weights": "w"}
    versions = client.versions()
    assert {"python", "torch", "ms4-train", "mistral-common"} == set(versions)
    assert json.loads(json.dumps(versions)) == versions
