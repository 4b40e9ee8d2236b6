"""Image embeddings are found by content, computed once, bounded, and never those of other weights."""

from __future__ import annotations

import torch

from ms4_train.inference.image_features import ImageFeatureCache, image_digests
from ms4_train.model import ImageBatch


def batch(*values: float) -> ImageBatch:
    """Images of four patches each, all of one value, so that their embeddings tell them apart."""
    return ImageBatch(torch.cat([torch.full((4, 12), float(value)) for value in values]), ((2, 2),) * len(values))


class Tower:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, images: ImageBatch, adapter: str | None) -> torch.Tensor:
        self.seen.append(len(images.grids))
        return images.patches_pi.view(-1, 4, 12).mean(dim=(1, 2))[:, None].repeat(1, 8)


def features(cache: ImageFeatureCache, images: ImageBatch, weights: bytes = b"base") -> list[float]:
    return cache.features(images, image_digests(images), None, weights)[:, 0].tolist()


def test_only_unknown_images_pass_the_tower_and_order_is_kept() -> None:
    tower = Tower()
    cache = ImageFeatureCache(tower, merge=2)
    assert features(cache, batch(1, 2)) == [1, 2]
    assert features(cache, batch(3, 2, 1, 3)) == [3, 2, 1, 3]
    assert tower.seen == [2, 1]
    assert (cache.hits, cache.misses) == (3, 3)


def test_other_weights_see_anew() -> None:
    tower = Tower()
    cache = ImageFeatureCache(tower, merge=2)
    features(cache, batch(1))
    features(cache, batch(1), weights=b"an adapter")
    assert tower.seen == [1, 1]
    cache.clear()
    features(cache, batch(1))
    assert tower.seen == [1, 1, 1]


def test_the_least_recently_used_goes_first() -> None:
    tower = Tower()
    cache = ImageFeatureCache(tower, merge=2, max_bytes=2 * 8 * 4)
    features(cache, batch(1, 2))
    features(cache, batch(1))
    features(cache, batch(3))  # takes the room of 2
    features(cache, batch(1))
    assert tower.seen == [2, 1]
    assert features(cache, batch(4, 5, 6, 7)) == [4, 5, 6, 7]  # more than fits: all are there, few are kept


def test_digests_are_of_pixels_type_and_shape() -> None:
    one = batch(1)
    digests = {
        image_digests(one)[0],
        image_digests(batch(2))[0],
        image_digests(ImageBatch(one.patches_pi, ((4, 1),)))[0],
        image_digests(ImageBatch(one.patches_pi.double(), ((2, 2),)))[0],
    }
    assert len(digests) == 4
    assert image_digests(batch(2, 1))[1] == image_digests(one)[0]


def test_apart_every_image_is_a_pass_of_its_own() -> None:
    tower = Tower()
    cache = ImageFeatureCache(tower, merge=2, apart=True)
    assert features(cache, batch(3, 2, 3)) == [3, 2, 3]
    assert tower.seen == [1, 1]
