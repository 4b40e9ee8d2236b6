"""Embeddings of images, kept by content: the same image in the next turn, or in another request, does not pass the tower again.

Exercise it: ``pytest tests/ms4_train/inference/test_image_features.py``.

Shape suffixes: n image tokens, d hidden, p patches.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from ms4_train.model.images import ImageBatch

DEFAULT_BYTES = 256 << 20


def image_digests(images: ImageBatch) -> tuple[bytes, ...]:
    """A digest of each image: its pixels, their type and its grid."""
    digests: list[bytes] = []
    first = 0
    patches_pi = images.patches_pi.detach().cpu().contiguous()
    for grid, length in zip(images.grids, images.lengths, strict=True):
        part_pi = patches_pi[first : first + length]
        digest = hashlib.blake2b(f"{grid} {part_pi.dtype}".encode(), digest_size=24)
        digest.update(part_pi.view(torch.uint8).numpy().data)
        digests.append(digest.digest())
        first += length
    return tuple(digests)


class ImageFeatureCache:
    """The embeddings of the images seen last.

    Args:
        compute: embeddings [N, d] of a batch of images, image behind image.
        merge: ``merge`` x ``merge`` patches make one image token.
        max_bytes: of all embeddings kept; the least recently used go first.
        apart: compute each image in a pass of its own, so that its embeddings are the same bits whatever it was asked with.
    """

    def __init__(
        self, compute: Callable[[ImageBatch, str | None], Tensor], merge: int, *, max_bytes: int = DEFAULT_BYTES, apart: bool = False
    ) -> None:
        self.hits = 0
        self.misses = 0
        self._compute = compute
        self._merge = merge
        self._max_bytes = max_bytes
        self._apart = apart
        self._kept: OrderedDict[tuple[bytes, bytes], Tensor] = OrderedDict()
        self._bytes = 0

    def features(self, images: ImageBatch, digests: tuple[bytes, ...], adapter: str | None, weights: bytes) -> Tensor:
        """Embeddings [N, d] of all image tokens of a prompt; what is not kept is computed in one pass.

        Args:
            images: of the prompt, in order.
            digests: of the images.
            adapter: computes them.
            weights: names the weights that compute them; embeddings of others are not used.
        """
        keys = [(digest, weights) for digest in digests]
        missing = [index for index, key in enumerate(keys) if key not in self._kept and key not in keys[:index]]
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        found = {key: self._kept[key] for key in keys if key in self._kept}
        for together in [[index] for index in missing] if self._apart else [missing] if missing else []:
            batch = _some(images, together)
            computed = self._compute(batch, adapter).split(batch.num_tokens(self._merge))
            for index, features_nd in zip(together, computed, strict=True):
                found[keys[index]] = features_nd
                self._keep(keys[index], features_nd.clone())  # a view would keep the whole batch alive
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        return torch.cat([found[key] for key in keys])

    def clear(self) -> None:
        """Keep nothing: the weights have changed."""
        self._kept.clear()
        self._bytes = 0

    def _keep(self, key: tuple[bytes, bytes], features_nd: Tensor) -> None:
        self._kept[key] = features_nd
        self._bytes += features_nd.nbytes
        while self._bytes > self._max_bytes and self._kept:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes


def _some(images: ImageBatch, wanted: list[int]) -> ImageBatch:
    """A batch of some of the images."""
    if len(wanted) == len(images.grids):
        return images
    parts = images.patches_pi.split(images.lengths)
    return ImageBatch(torch.cat([parts[index] for index in wanted]), tuple(images.grids[index] for index in wanted))
