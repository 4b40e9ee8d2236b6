"""The whole model: the text network with a vision tower before it. Embeddings of image tokens come from the tower and the projector.

Parameter names are the text network's own, beside ``vision_tower.*`` and ``multi_modal_projector.*``.
Exercise it: ``pytest tests/ms4_train/model/test_multimodal.py``; parity with transformers: ``test_multimodal_parity.py`` beside it.

Shape suffixes: t tokens of all sequences, d hidden, n image tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ms4_kernels.dispatch import Backend
from ms4_train.model.cache import LatentCache
from ms4_train.model.config import TextConfig
from ms4_train.model.images import ImageBatch
from ms4_train.model.layout import SequenceLayout
from ms4_train.model.network import Mistral4ForCausalLM
from ms4_train.model.vision import MultiModalProjector, VisionTower
from ms4_train.model.vision_config import VisionConfig

PROJECTOR_NORM_EPS = 1e-5
"""As vLLM and SGLang have it; transformers takes the text network's 1e-6 (spec section 2.3)."""


class Mistral3ForConditionalGeneration(Mistral4ForCausalLM):
    """Text and images to text. A new one holds uninitialised weights.

    Attributes:
        always_run_vision: in a pass without images too, send one blank cell through tower and projector, and add nothing of it. For ranks
            that exchange the weights or gradients of these modules while they compute: all must run the same ones, whatever they read.
    """

    def __init__(
        self, config: TextConfig, vision: VisionConfig, *, experts_backend: Backend = "auto", projector_norm_eps: float = PROJECTOR_NORM_EPS
    ) -> None:
        super().__init__(config, experts_backend=experts_backend)
        self.vision_config = vision
        self.always_run_vision = False
        self.vision_tower = VisionTower(vision)
        self.multi_modal_projector = MultiModalProjector(vision, config.hidden_size, projector_norm_eps)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether training recomputes each layer, the tower's too, in the backward pass."""
        return self.model.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enabled: bool) -> None:
        self.model.gradient_checkpointing = enabled
        self.vision_tower.gradient_checkpointing = enabled

    def image_features(self, images: ImageBatch) -> Tensor:
        """Embeddings of all image tokens, [N, d], image behind image.

        Raises:
            ValueError: patches of another size than the tower's, or an image that is not made of whole cells.
        """
        return self.multi_modal_projector(self.vision_tower(images), images)

    def embed(self, input_ids_t: Tensor, features_nd: Tensor | None = None) -> Tensor:
        """Embeddings [T, d] of tokens, with ``features_nd`` in the places of the image tokens, in their order.

        Raises:
            ValueError: not as many features as image tokens.
        """
        place_n = (input_ids_t == self.vision_config.image_token_index).nonzero().squeeze(1)
        given = 0 if features_nd is None else features_nd.shape[0]
        if len(place_n) != given:
            raise ValueError(f"{len(place_n)} image tokens, but features of {given}")
        embedding_td = self.model.embed_tokens(input_ids_t)
        return embedding_td if features_nd is None else embedding_td.index_copy(0, place_n, features_nd.to(embedding_td.dtype))

    def forward(
        self, input_ids_t: Tensor, layout: SequenceLayout, cache: LatentCache | None = None, images: ImageBatch | None = None
    ) -> Tensor:
        """Run tower and layers.

        Args:
            input_ids_t: int64 [T], as the text network's.
            layout: where the sequences begin and end.
            cache: receives the new tokens' latents.
            images: of all sequences, in the order of their tokens, on the device of the tokens. With a cache and without images, image
                tokens are ordinary ones: the model may have drawn them itself.

        Returns:
            [T, d] after the final norm.

        Raises:
            ValueError: image tokens without images or the other way round.
        """
        if images is not None:
            features_nd = self.image_features(images)
            return self.model(self.embed(input_ids_t, features_nd), layout, cache)
        # Before the embedding, as with images: ranks must meet in the same order, forward and backward.
        nothing_1d = 0.0 * self.image_features(self._blank_cell(input_ids_t.device)) if self.always_run_vision else None
        embedding_td = self.embed(input_ids_t) if cache is None else self.model.embed_tokens(input_ids_t)
        if nothing_1d is not None:
            embedding_td = embedding_td + nothing_1d.to(embedding_td.dtype)
        return self.model(embedding_td, layout, cache)

    def _blank_cell(self, device: torch.device) -> ImageBatch:
        config = self.vision_config
        side = config.spatial_merge_size
        return ImageBatch(torch.zeros(side**2, config.num_channels * config.patch_size**2, device=device), ((side, side),))
