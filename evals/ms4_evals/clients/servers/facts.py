"""What people should know of each kind of server, with the sources: ``ms4 eval servers`` prints this.

Versions that were read or run: vLLM 0.32, SGLang 004c82e, llama.cpp as in xllamacpp 2026.10.11549, transformers 5.23,
mistralai/client-python 02e327f, openai 3.54, LM Studio's documentation and tracker up to 2026-09.
Exercise it: ``pytest tests/evals/ms4_evals/clients/servers/test_facts.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """Of one kind.

    Attributes:
        thinking: where it comes back.
        tokens: what streams tell about tokens, and whether those of thinking are told apart.
        know: what it refuses or passes over in silence.
        sources: documents, threads and files that say so; "run here" for what this project's tests meet on the real server.
    """

    thinking: str
    tokens: str
    know: str
    sources: tuple[str, ...]


FACTS: dict[str, Facts] = {
    "vllm": Facts(
        thinking="reasoning (older versions: reasoning_content) with --reasoning-parser mistral; else [THINK] tags in content",
        tokens="when asked; those of thinking with a reasoning parser",
        know="Mistral tokenizers refuse efforts other than none and high, and chat_template_kwargs; seeds beyond 64 bits are refused;"
        " unknown keys pass in silence; top_k, top_p and penalties default to the model's generation_config; other models' parsers may"
        " put thinking that max_tokens cut into content, without tags",
        sources=(
            "vllm/entrypoints/openai/chat_completion/protocol.py",
            "vllm/tokenizers/mistral.py",
            "https://github.com/vllm-project/vllm/pull/30391",
            "https://github.com/vllm-project/vllm/pull/35296",
            "https://github.com/vllm-project/vllm/issues/45359",
            "run here",
        ),
    ),
    "sglang": Facts(
        thinking="reasoning_content with --reasoning-parser mistral; else [THINK] tags in content",
        tokens="when asked; those of thinking as usage.reasoning_tokens",
        know="without a parser, tags are special tokens and vanish unless skip_special_tokens is false; seeds act only under"
        " --enable-deterministic-inference; an answer without thinking may come whole as reasoning_content in mode high",
        sources=(
            "python/sglang/srt/entrypoints/openai/protocol.py",
            "https://github.com/sgl-project/sglang/pull/20708",
            "https://github.com/sgl-project/sglang/pull/26716",
            "https://github.com/sgl-project/sglang/pull/15562",
            "https://github.com/sgl-project/sglang/issues/15746",
        ),
    ),
    "llama.cpp": Facts(
        thinking="reasoning_content, streamed too; with --reasoning-format none, tags in content",
        tokens="when asked; those of thinking are not told apart",
        know="its own defaults are top_k 40, min_p 0.05 and the temperature last; seeds are cut to 32 bits, and the highest one means a"
        " random seed; names of samplers that it does not know are dropped in silence; a cached prompt may change an answer, unless"
        " `extra_body: {cache_prompt: false}`; the name of the model is not checked, and the reply names the file",
        sources=(
            "tools/server/README.md",
            "tools/server/server-common.cpp",
            "tools/server/server-schema.cpp",
            "run here",
        ),
    ),
    "lm-studio": Facts(
        thinking="reasoning_content or reasoning, when Settings > Developer separates it; else tags in content",
        tokens="when asked (0.3.18 and later); those of thinking are not told apart",
        know="reasoning_effort reaches only some models (Gemma 4, Qwen 3.5) and is dropped in silence for others: look at the lengths of"
        " thinking in both modes; no documented key switches its min_p of 0.05 off",
        sources=(
            "https://lmstudio.ai/docs/developer/openai-compat/chat-completions",
            "https://lmstudio.ai/docs/developer/api-changelog",
            "https://github.com/eyalrot/ollama_openai/pull/34",
            "https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/480",
            "https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/2057",
            "https://github.com/lmstudio-ai/lmstudio-bug-tracker/issues/2195",
        ),
    ),
    "transformers": Facts(
        thinking="reasoning_content, if tokenizer_config.json has a response_template; else it is lost in content, without tags",
        tokens="always, with the last chunk; those of thinking are not told apart",
        know="reasoning_effort and stream_options pass with a warning in its log, unheard; temperature acts only with do_sample, which"
        " generation_config brings; other keys such as top_k get 422; one seed for the whole process: `concurrency: 1`; the list of models"
        " is the hub's cache, so name the model, and the reply adds @main to it; streams end without [DONE]; a folder with tekken.json"
        " needs a chat_template.jinja beside it",
        sources=("transformers/cli/serving/chat_completion.py", "transformers/cli/serving/utils.py", "run here"),
    ),
    "ms4": Facts(
        thinking="reasoning_content, and again as reasoning",
        tokens="when asked; those of thinking too",
        know="unknown keys are refused; efforts are none and high",
        sources=("ms4_train/serving/chat_fields.py", "run here"),
    ),
    "mistral": Facts(
        thinking="content as a list of parts of type thinking and text",
        tokens="always, with the last chunk; those of thinking are not told apart",
        know="unknown keys are refused, seed and stream_options among them; top_p must be 1 beside temperature 0; prompt_mode: reasoning"
        " is an error for Small 4",
        sources=(
            "https://docs.mistral.ai/api/endpoint/chat",
            "https://docs.mistral.ai/studio-api/conversations/reasoning",
            "https://github.com/agentjido/req_llm/issues/742",
            "https://github.com/earendil-works/pi/issues/3096",
            "https://github.com/dnakov/anon-kode/issues/53",
            "https://github.com/Vali-98/ChatterUI/issues/143",
            "https://github.com/devoxx/DevoxxGenieIDEAPlugin/issues/338",
        ),
    ),
    "openai": Facts(
        thinking="nothing: OpenAI keeps it",
        tokens="when asked; those of thinking too",
        know="reasoning models refuse max_tokens, and temperature and top_p other than 1: write"
        " `extra_body: {temperature: null, top_p: null}`; seeds are a best effort",
        sources=("https://platform.openai.com/docs/api-reference/chat/create", "https://developers.openai.com/api/docs/guides/reasoning"),
    ),
    "compatible": Facts(
        thinking="any of the forms above",
        tokens="when asked, mostly",
        know="what it refuses can be taken away or renamed: `extra_body: {seed: null}`; whether it reasons in one mode and not in the other"
        " shows in the lengths of thinking",
        sources=("https://platform.openai.com/docs/api-reference/chat/create",),
    ),
}
