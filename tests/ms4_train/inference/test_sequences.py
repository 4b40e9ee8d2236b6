"""From a request to its sequences: one per answer, each with its own seed and state, all with the request's images and adapter."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_config
from support.multimodal import cells_of, image_batch, random_pixels, sequence_ids, tiny_multimodal

from ms4_train.errors import EngineError
from ms4_train.inference import ConstraintSpec, GenerationRequest, SamplingParams
from ms4_train.inference.adapters import AdapterRegistry
from ms4_train.inference.sequences import SequenceMaker

PARTS = [3, (1, 2), 4, (2, 2), 3]


@pytest.fixture
def maker(model, tokenizer) -> SequenceMaker:
    return SequenceMaker(model, tokenizer, AdapterRegistry(model))


def test_answers_of_one_request_have_their_own_seeds_and_one_leader(maker) -> None:
    made = maker.make(GenerationRequest("r", (1, 2, 3), SamplingParams(seed=9), n=3), arrived=1.5)
    assert [sequence.index for sequence in made] == [0, 1, 2]
    assert made[0].seed == 9
    assert len({sequence.seed for sequence in made}) == 3
    assert made[0].leader is None
    assert all(sequence.leader is made[0] for sequence in made[1:])
    assert len({id(sequence.matcher) for sequence in made}) == len({id(sequence.thought) for sequence in made}) == 3


def test_each_answer_has_its_own_state_of_a_constraint(maker) -> None:
    spec = ConstraintSpec("regex", "[ab]+")
    made = maker.make(GenerationRequest("r", (1,), SamplingParams(constraint=spec), n=2), arrived=0.0)
    assert made[0].constraint is not None
    assert made[0].constraint is not made[1].constraint
    with pytest.raises(EngineError):
        maker.check_constraint(ConstraintSpec("regex", "(unclosed"))


def test_images_are_placed_where_their_tokens_are(tokenizer) -> None:
    seeing = tiny_multimodal(tiny_config(vocab_size=tokenizer.vocab_size))
    ids = sequence_ids(PARTS, seeing.config.vocab_size)
    images = image_batch(random_pixels(cells_of(PARTS), seeing.vision_config), seeing.vision_config)
    maker = SequenceMaker(seeing, tokenizer, AdapterRegistry(seeing))
    (sequence,) = maker.make(GenerationRequest("r", tuple(ids.tolist()), images=images), arrived=0.0)
    assert sequence.images is not None
    assert torch.equal(torch.tensor(sequence.images.places), (ids == 10).nonzero()[:, 0])
    assert len(sequence.images.digests) == len(sequence.images.first_places) == 2
    assert sequence.images.first_places[0] == 3
    assert set(sequence.images.first_places) <= set(sequence.images.places)


def test_the_model_as_it_stands_and_adapters_have_roots_of_their_own(maker, monkeypatch) -> None:
    generation = {"a": 1, "b": 2}
    monkeypatch.setattr(AdapterRegistry, "generation", lambda self, name: generation[name])
    roots = {maker.root(None), maker.root("a"), maker.root("b")}
    generation["a"] = 3  # dropped, and another one loaded under its name
    assert len({*roots, maker.root("a")}) == 4
