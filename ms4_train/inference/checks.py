"""What an engine refuses before it computes anything: bounds that make no sense, and requests that cannot be served.

Exercise it: ``pytest tests/ms4_train/inference/test_checks.py``.
"""

from __future__ import annotations

from collections.abc import Collection

from ms4_train.errors import EngineError
from ms4_train.inference.request import GenerationRequest
from ms4_train.model.multimodal import Mistral3ForConditionalGeneration
from ms4_train.model.network import Mistral4ForCausalLM


def check_bounds(model: Mistral4ForCausalLM, tokenizer_size: int, bounds: dict[str, tuple[int, int]]) -> None:
    """Refuse an engine's settings.

    Args:
        model: to generate with.
        tokenizer_size: ids of the tokenizer.
        bounds: value and smallest allowed value of each setting, by name.

    Raises:
        EngineError: a value below its bound, or a tokenizer with more tokens than the model.
    """
    for key, (value, smallest) in bounds.items():
        if value < smallest:
            raise EngineError(f"{value} is below {smallest}.", key=key, fix=f"use {smallest} or more.")
    if tokenizer_size > model.config.vocab_size:
        raise EngineError(
            f"the tokenizer has {tokenizer_size} tokens, the model {model.config.vocab_size}.",
            key="vocab_size",
            fix="use the tokenizer that the model was trained with.",
        )


def check_request(
    request: GenerationRequest, model: Mistral4ForCausalLM, *, vocab_size: int, max_context: int, adapters: Collection[str]
) -> None:
    """Refuse a request that cannot be served.

    Args:
        request: checked in itself already.
        model: to answer it.
        vocab_size: ids of tokenizer and model.
        max_context: most tokens of prompt and answer.
        adapters: names of the loaded ones.

    Raises:
        EngineError: ``key`` is the request's id, or the field that is wrong.
    """
    key = request.request_id
    highest = max(request.prompt_ids)
    if highest >= vocab_size:
        raise EngineError(
            f"the prompt holds token {highest}, the vocabulary ends at {vocab_size - 1}.",
            key=key,
            fix="encode the prompt with the model's tokenizer.",
        )
    prompt, answer = len(request.prompt_ids), request.sampling.max_tokens
    if prompt + answer > max_context:
        raise EngineError(
            f"{prompt} prompt tokens and max_tokens {answer} make {prompt + answer}, above max_context {max_context} "
            f"(the model's limit is {model.config.max_position_embeddings}).",
            key=key,
            fix="shorten the prompt, lower max_tokens, or give the engine a larger max_context.",
        )
    if request.adapter is not None and request.adapter not in adapters:
        raise EngineError(
            f"there is no adapter {request.adapter!r}.", key="adapter", fix=f"loaded are: {', '.join(sorted(adapters)) or 'none'}."
        )
    biased = [token_id for token_id, _ in request.sampling.logit_bias]
    for field, ids in (("logit_bias", biased), ("stop_token_ids", request.sampling.stop_token_ids)):
        for token_id in ids:
            if token_id >= vocab_size:
                raise EngineError(f"token {token_id} is beyond the vocabulary of {vocab_size}.", key=field, fix="use the model's ids.")
    _check_images(request, model)


def _check_images(request: GenerationRequest, model: Mistral4ForCausalLM) -> None:
    """Refuse images that the model cannot see, or that are not as many as their tokens."""
    if not isinstance(model, Mistral3ForConditionalGeneration):
        if request.images is not None:
            raise EngineError("the model has no vision.", key="images", fix="load a checkpoint with a vision tower.")
        return
    config = model.vision_config
    places = request.prompt_ids.count(config.image_token_index)
    try:
        given = 0 if request.images is None else sum(request.images.num_tokens(config.spatial_merge_size))
    except ValueError as error:
        raise EngineError(f"{error}.", key=request.request_id, fix="preprocess the images for this model.") from None
    if places != given:
        raise EngineError(
            f"the prompt holds {places} image tokens, the images make {given}.",
            key=request.request_id,
            fix="encode prompt and images together, with chat_request.",
        )
