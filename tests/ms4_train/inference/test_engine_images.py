"""Prompts with images: the tokens of transformers and of recomputing everything, in any company and any pieces; what is refused."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image
from support.models import tiny_config
from support.multimodal import IMG, cells_of, hf_images, hf_multimodal_twin, image_batch, random_pixels, sequence_ids, tiny_multimodal

from ms4_train.chat.images import to_image_batch
from ms4_train.errors import EngineError, RowError
from ms4_train.inference import Engine, GenerationRequest, SamplingParams, chat_request
from ms4_train.model import ImageBatch, SequenceLayout
from ms4_train.untrusted import ImageReader

PARTS = [(3, (1, 2), 4, (2, 2), 3), (5, (3, 1), 2), (7,), (1, (2, 1), 1)]


@pytest.fixture(scope="module")
def seeing(tokenizer):
    return tiny_multimodal(tiny_config(vocab_size=tokenizer.vocab_size))


@pytest.fixture(scope="module")
def inputs(seeing):
    """(prompt ids, pixels) of each prompt; one has no image."""
    return [
        (sequence_ids(parts, seeing.config.vocab_size, seed), random_pixels(cells_of(parts), seeing.vision_config, seed))
        for seed, parts in enumerate(PARTS)
    ]


def requests_of(seeing, inputs, **sampling):
    def request(number, ids, pixels):
        images = image_batch(pixels, seeing.vision_config) if pixels else None
        return GenerationRequest(str(number), tuple(ids.tolist()), SamplingParams(**sampling), images)

    return [request(number, ids, pixels) for number, (ids, pixels) in enumerate(inputs)]


@torch.no_grad()
def recomputed(seeing, ids, pixels, count, eos_id):
    """Greedy tokens, the whole sequence computed anew for each, images and all."""
    images = image_batch(pixels, seeing.vision_config) if pixels else None
    chosen: list[int] = []
    while len(chosen) < count:
        features = None if images is None else seeing.image_features(images)
        given = seeing.embed(ids, features)
        # A token that was chosen is no place for an image, whatever its id.
        behind = seeing.model.embed_tokens(torch.tensor(chosen, dtype=torch.int64))
        hidden = seeing.model(torch.cat((given, behind)), SequenceLayout.from_lengths([len(ids) + len(chosen)]))
        token = int(seeing.logits(hidden[-1:]).argmax())
        if token == eos_id:
            break
        chosen.append(token)
    return chosen


@pytest.mark.parametrize(("max_batch_size", "token_budget"), [(8, None), (2, 7), (1, 1)], ids=["together", "pieces", "one by one"])
def test_any_company_and_any_pieces_give_the_tokens_of_recomputing(seeing, tokenizer, inputs, max_batch_size, token_budget):
    completions = Engine(seeing, tokenizer, max_batch_size=max_batch_size, token_budget=token_budget).generate(
        requests_of(seeing, inputs, max_tokens=8)
    )
    for completion, (ids, pixels) in zip(completions, inputs, strict=True):
        assert completion.token_ids == recomputed(seeing, ids, pixels, 8, tokenizer.eos_id)


def test_first_token_equals_transformers(seeing, tokenizer, inputs):
    oracle = hf_multimodal_twin(seeing)
    completions = Engine(seeing, tokenizer).generate(requests_of(seeing, inputs, max_tokens=1))
    for completion, (ids, pixels) in zip(completions, inputs, strict=True):
        with torch.no_grad():
            logits = oracle(input_ids=ids[None], **(hf_images(pixels) if pixels else {})).logits[0, -1]
        assert completion.token_ids == [token for token in [int(logits.argmax())] if token != tokenizer.eos_id]


def test_pictures_change_answers(seeing, tokenizer, inputs):
    """Control: with other pixels the same prompts give other tokens."""
    others = [(ids, [-2 * image for image in pixels]) for ids, pixels in inputs]
    mine, theirs = (Engine(seeing, tokenizer).generate(requests_of(seeing, given, max_tokens=8)) for given in (inputs, others))
    assert [a.token_ids == b.token_ids for a, b in zip(mine, theirs, strict=True)] == [False, False, True, False]


def test_an_image_token_that_the_model_chose_is_a_token_like_any_other(seeing, tokenizer, inputs):
    head = seeing.lm_head.weight.detach().clone()
    try:
        with torch.no_grad():
            seeing.lm_head.weight.zero_()
            seeing.lm_head.weight[IMG].normal_()  # its logit is above zero or below: then id 0 wins
            completions = Engine(seeing, tokenizer).generate(requests_of(seeing, inputs, max_tokens=6))
            assert any(IMG in completion.token_ids for completion in completions)
            for completion, (ids, pixels) in zip(completions, inputs, strict=True):
                assert completion.token_ids == recomputed(seeing, ids, pixels, 6, tokenizer.eos_id)
    finally:
        seeing.lm_head.weight.data.copy_(head)


def test_images_and_their_tokens_must_agree(seeing, model, tokenizer, inputs):
    ids, pixels = inputs[0]
    prompt, images = tuple(ids.tolist()), image_batch(pixels, seeing.vision_config)
    engine = Engine(seeing, tokenizer)
    with pytest.raises(EngineError, match="6 image tokens, the images make 0"):
        engine.generate([GenerationRequest("x", prompt)])
    with pytest.raises(EngineError, match="0 image tokens, the images make 6"):
        engine.generate([GenerationRequest("x", (1, 20, 21), images=images)])
    with pytest.raises(EngineError, match="not made of cells"):
        engine.generate([GenerationRequest("x", prompt, images=ImageBatch(images.patches_pi[:3], ((1, 3),)))])
    with pytest.raises(EngineError, match="no vision"):
        Engine(model, tokenizer).generate([GenerationRequest("x", (1, 20, 21), images=images)])


def test_chat_messages_carry_images(seeing, tokenizer):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((60, 30)).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]}]
    request = chat_request(tokenizer, messages, request_id="x", reasoning_effort="none", sampling=SamplingParams(max_tokens=3))
    assert request.prompt_ids.count(IMG) == 3 * 2
    assert request.images is not None
    expected = to_image_batch([ImageReader().read_reference(url)], tokenizer.image_spec)
    assert torch.equal(request.images.patches_pi, expected.patches_pi)
    assert len(Engine(seeing, tokenizer).generate([request])) == 1
    messages[0]["content"][0]["image_url"]["url"] = "https://example.org/x.png"
    with pytest.raises(RowError, match="image"):
        chat_request(tokenizer, messages, request_id="x", reasoning_effort="none", sampling=SamplingParams())
