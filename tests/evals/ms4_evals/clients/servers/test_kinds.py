"""What each kind is asked, against those who know: bodies that real servers took, the request models of OpenAI's client and of
``ms4 serve``, and the published lists of keys of those that cannot run here."""

from __future__ import annotations

import asyncio
import json
import re
from typing import get_args

import httpx
import pytest
from support.recorded_replies import all_names, load, sample_request

from ms4_evals.clients.servers.kinds import KINDS, detect_kind
from ms4_train.config.endpoint import EndpointSection, ServerKindName
from ms4_train.serving.chat_fields import ChatRequest

SEED = 2**63 - 1

# https://docs.mistral.ai/api/endpoint/chat, mistralai/client-python src/mistralai/client/models/chatcompletionrequest.py; others get 422
MISTRAL_KEYS = set(
    re.findall(
        r"\w+",
        """
    model messages temperature top_p max_tokens stream stop random_seed metadata response_format tools tool_choice presence_penalty
    frequency_penalty n prediction parallel_tool_calls reasoning_effort prompt_mode guardrails prompt_cache_key safe_prompt
""",
    )
)
# sgl-project/sglang python/sglang/srt/entrypoints/openai/protocol.py, those of ChatCompletionRequest that matter here
SGLANG_KEYS = set(
    re.findall(
        r"\w+",
        """
    messages model frequency_penalty max_tokens max_completion_tokens n presence_penalty seed stop stream stream_options temperature top_p
    reasoning_effort top_k min_p repetition_penalty skip_special_tokens separate_reasoning chat_template_kwargs
""",
    )
)
# https://lmstudio.ai/docs/developer/openai-compat/chat-completions; stream_options since 0.3.18, reasoning_effort by
# https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/2057
LM_STUDIO_KEYS = set(
    re.findall(
        r"\w+",
        """
    model top_p top_k messages temperature max_tokens stream stop presence_penalty frequency_penalty logit_bias repeat_penalty seed
    stream_options reasoning_effort
""",
    )
)


def body_of(name, mode="high", *, stream=True, temperature=0.7, top_p=0.95, seed=SEED, **extra):
    request = sample_request("What is 2 + 3?", mode, max_tokens=100, temperature=temperature, top_p=top_p, seed=seed)
    return KINDS[name].body(request, "small-4", stream=stream, extra_body=extra)


def effort(body):
    return body.get("reasoning_effort") or body.get("chat_template_kwargs", {}).get("reasoning_effort")


def test_the_configuration_knows_all_kinds():
    assert set(get_args(ServerKindName)) == {"auto", *KINDS}
    assert all(name == kind.name for name, kind in KINDS.items())
    for name in KINDS:
        EndpointSection.model_validate({"servers": [{"base_url": "http://127.0.0.1:8000/v1"}], "kind": name})


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("mode", ["none", "high"])
@pytest.mark.parametrize("stream", [True, False])
class TestEveryKind:
    def test_the_mode_is_asked_for_in_one_place(self, name, mode, stream):
        body = body_of(name, mode, stream=stream)
        assert effort(body) == mode
        assert ("reasoning_effort" in body) != ("chat_template_kwargs" in body)
        assert "prompt_mode" not in body

    def test_the_rest(self, name, mode, stream):
        body = body_of(name, mode, stream=stream)
        assert body["messages"] == [{"role": "user", "content": "What is 2 + 3?"}]
        assert (body["model"], body["temperature"], body["top_p"], body["stream"]) == ("small-4", 0.7, 0.95, stream)
        assert [body[key] for key in ("max_tokens", "max_completion_tokens") if key in body] == [100]
        assert body.get("stream_options") == ({"include_usage": True} if stream and name not in {"transformers", "mistral"} else None)
        assert json.loads(json.dumps(body, allow_nan=False)) == body

    def test_the_greedy_choice_comes_without_top_p(self, name, mode, stream):
        body = body_of(name, mode, stream=stream, temperature=0.0)
        assert body["temperature"] == 0
        assert "top_p" not in body


@pytest.mark.parametrize(
    ("name", "key", "bound"),
    [
        ("vllm", "seed", 2**63),
        ("sglang", "seed", 2**63),
        ("transformers", "seed", 2**63),
        ("ms4", "seed", 2**63),
        ("llama.cpp", "seed", 2**32 - 1),
        ("lm-studio", "seed", 2**31 - 1),
        ("mistral", "random_seed", 2**31),
        ("openai", "seed", 2**63),
        ("compatible", "seed", 2**53),
    ],
)
def test_seeds_fit(name, key, bound):
    for seed in (0, 5, bound - 1, SEED):
        assert body_of(name, seed=seed)[key] == seed % bound
    assert ("seed" in body_of(name)) == (key == "seed")


def test_transformers_samples_only_when_told_to():
    assert json.loads(body_of("transformers")["generation_config"]) == {"do_sample": True, "top_k": 0}
    assert json.loads(body_of("transformers", temperature=0.0)["generation_config"]) == {"do_sample": False, "top_k": 0}
    assert all("generation_config" not in body_of(name) for name in set(KINDS) - {"transformers"})


@pytest.mark.parametrize("mode", ["none", "high"])
@pytest.mark.parametrize("stream", [True, False])
def test_keys_are_those_that_the_server_takes(mode, stream):
    from openai.types.chat import completion_create_params as params

    openai = set(params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    for name, keys in (
        ("mistral", MISTRAL_KEYS),
        ("sglang", SGLANG_KEYS),
        ("lm-studio", LM_STUDIO_KEYS),
        ("openai", openai),
        ("compatible", openai),
    ):
        assert set(body_of(name, mode, stream=stream)) <= keys, name
    ChatRequest.model_validate(body_of("ms4", mode, stream=stream))


def test_bodies_are_those_that_real_servers_answered():
    seen = set()
    for name in all_names():
        recording = load(name)
        for case in recording.cases:
            request = sample_request(case.question, case.mode, max_tokens=case.max_tokens)
            model = case.body["model"]
            assert KINDS[recording.kind].body(request, model, stream=case.stream, extra_body={}) == case.body
        seen.add(recording.kind)
    assert seen == {"ms4", "llama.cpp", "transformers", "vllm"}


def test_streams_of_real_servers_end_as_the_table_says():
    for name in all_names():
        recording = load(name)
        for case in recording.cases:
            if case.stream:
                assert case.reply.rstrip().endswith("[DONE]") == KINDS[recording.kind].ends_with_done
                assert '"usage":{"' in case.reply


def test_further_keys_are_laid_over_and_nulls_take_away():
    assert body_of("vllm", top_k=20, priority=1)["top_k"] == 20
    body = body_of("compatible", max_tokens=None, max_completion_tokens=50, reasoning_effort=None)
    assert ("max_tokens" in body, body["max_completion_tokens"], effort(body)) == (False, 50, None)
    body = body_of("llama.cpp", chat_template_kwargs={"enable_thinking": True})
    assert body["chat_template_kwargs"] == {"reasoning_effort": "high", "enable_thinking": True}
    assert "stream_options" not in body_of("vllm", stream_options=None)


def test_further_keys_change_neither_the_table_nor_the_configuration():
    extra = {"chat_template_kwargs": {"enable_thinking": True}, "top_k": 5}
    before = json.dumps(extra)
    body_of("vllm", **extra)
    body_of("llama.cpp", **extra)
    assert json.dumps(extra) == before
    assert KINDS["vllm"].plain_sampling["top_k"] == -1


def test_settings_that_are_left_to_the_server_are_not_sent():
    body = body_of("openai", temperature=None, top_p=None)
    assert {"temperature", "top_p"} & set(body) == set()


def test_detection_gives_a_row_of_the_table():
    async def run():
        async with httpx.AsyncClient(transport=httpx.MockTransport(lambda request: httpx.Response(404))) as client:
            return [await detect_kind(client, url, {}) for url in ("https://api.mistral.ai/v1", "http://127.0.0.1:9/v1")]

    assert asyncio.run(run()) == [KINDS["mistral"], KINDS["compatible"]]
