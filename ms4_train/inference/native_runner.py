"""The engine's runner on a CPU: a step of any pieces is one call of the compiled kernels, which read the model's weights where they lie.

A token's result is the same bits whatever else is in the step. Embeddings and image features come from the model's modules.
Exercise it: ``pytest tests/ms4_train/inference/test_native_runner.py``.

Shape suffixes: t new tokens of all pieces, r wanted rows, d hidden, v vocabulary, n image tokens, b pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ms4_kernels.native import library, why_not
from ms4_kernels.step.interface import NetworkStep
from ms4_kernels.step.interface import against as step_against
from ms4_train.adapters.attach import adapted_modules, adapter_names
from ms4_train.adapters.linear_lora import LoraLinear
from ms4_train.adapters.merge import is_merged
from ms4_train.adapters.router_lora import LoraRouter
from ms4_train.adapters.targets import VISION_PREFIXES
from ms4_train.adapters.trained_copy import TrainedCopy
from ms4_train.errors import EngineError
from ms4_train.inference.adapters import AdapterRegistry
from ms4_train.inference.network_weights import network_weights
from ms4_train.inference.paged_cache import PagedLatentCache
from ms4_train.inference.step import StepPiece
from ms4_train.model.images import ImageBatch
from ms4_train.model.moe import Mistral4Experts
from ms4_train.model.multimodal import Mistral3ForConditionalGeneration
from ms4_train.model.network import Mistral4ForCausalLM
from ms4_train.model.quantised import QuantisedLinear
from ms4_train.model.row_segments import RowSegment, row_segments

_BY_MODULES = ("model.embed_tokens.", *VISION_PREFIXES)
"""What modules compute here too, and so may be of any kind."""


class NativeRunner:
    """Computes steps by the compiled kernels; a :class:`Runner`.

    Args:
        model: nothing is to be said :func:`against` it.
        cache: takes the latents.
        adapters: of the model.
    """

    def __init__(self, model: Mistral4ForCausalLM, cache: PagedLatentCache, adapters: AdapterRegistry) -> None:
        self._model = model
        self._cache = cache
        self._adapters = adapters
        self._step: NetworkStep | None = None
        self._numbers: dict[str | None, int] = {}
        self._modes: list[tuple[nn.Module, bool]] = []

    @property
    def is_invariant(self) -> bool:
        """Always: every sum has one order."""
        return True

    def open(self) -> None:
        """Take the addresses of the weights. Values may change while it is open, as far as this runner is concerned; modules may not.

        Raises:
            EngineError: the model has become one that it does not serve.
        """
        if reason := against(self._model, self._cache):
            raise EngineError(f"the compiled runner does not serve this model: {reason}.", key="runner", fix="use modules.")
        self._adapters.refuses = lambda: against(self._model, self._cache)
        self._adapters.refresh()
        names = self._adapters.names
        weights = network_weights(self._model, names)
        self._step = NetworkStep(weights, self._cache.pools, self._cache.block_size)
        acts = bool(_acting(self._model))
        self._numbers = {None: 0 if acts else -1, **{name: number for number, name in enumerate(names, start=1)}}
        self._modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()

    def close(self) -> None:
        """Let go of the weights, and give the modules their modes back."""
        self._step = None
        self._adapters.refuses = str
        for module, was_training in self._modes:
            module.training = was_training
        self._modes = []

    @torch.inference_mode()
    def run(self, pieces: Sequence[StepPiece]) -> Tensor:
        """Compute the pieces; fp32 [R, d], after the final norm."""
        wanted_r: list[int] = []
        first = 0
        for piece in pieces:
            wanted_r += [first + offset for offset in piece.wanted]
            first += len(piece.token_ids)
        return self._opened.run(
            self._embed(pieces),
            [len(piece.token_ids) for piece in pieces],
            [piece.start for piece in pieces],
            [piece.blocks for piece in pieces],
            [self._numbers[piece.adapter] for piece in pieces],
            wanted_r,
        )

    @torch.inference_mode()
    def logits(self, hidden_rd: Tensor, adapters: Sequence[str | None]) -> Tensor:
        """Next-token logits, fp32 [R, V]."""
        return self._opened.logits(hidden_rd, [self._numbers[adapter] for adapter in adapters])

    @torch.inference_mode()
    def image_features(self, images: ImageBatch, adapter: str | None) -> Tensor:
        """Embeddings of all image tokens of one request, [N, d]."""
        assert isinstance(self._model, Mistral3ForConditionalGeneration)
        with row_segments([RowSegment(adapter, 0, len(images.patches_pi))]):
            return self._model.image_features(images)

    @property
    def _opened(self) -> NetworkStep:
        assert self._step is not None, "the runner is not open"
        return self._step

    def _embed(self, pieces: Sequence[StepPiece]) -> Tensor:
        """fp32 [T, d], with images in their places."""
        token_ids, segments = [], []
        for piece in pieces:
            segments.append(RowSegment(piece.adapter, len(token_ids), len(token_ids) + len(piece.token_ids)))
            token_ids += piece.token_ids
        with row_segments(segments):
            embedding_td = self._model.model.embed_tokens(torch.tensor(token_ids)).float()
        for piece, segment in zip(pieces, segments, strict=True):
            if piece.images is not None:
                embedding_td[segment.start + torch.tensor(piece.images.offsets)] = piece.images.features_nd.float()
        return embedding_td


def against(model: Mistral4ForCausalLM, cache: PagedLatentCache) -> str:
    """Why the compiled kernels do not serve a model as it is now, with all the adapters on it; empty where they do."""
    if library() is None:
        return f"there are no compiled kernels: {why_not()}"
    weight = model.model.embed_tokens.weight
    if weight.device.type != "cpu":
        return f"the model is on {weight.device}"
    reason = next(_unserved(model), "")
    names = () if is_merged(model) else tuple(adapter_names(model))
    return reason or step_against(network_weights(model, names), cache.pools)


def _unserved(model: Mistral4ForCausalLM) -> Iterator[str]:
    """What the step would compute otherwise than the modules do."""
    names = adapter_names(model)
    for name, module in model.named_modules():
        if module is model or f"{name}.".startswith(_BY_MODULES):
            continue
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            yield f"{name} has hooks, or another forward pass"
        if not type(module).__module__.startswith(("torch.nn.", "ms4_train.")):
            yield f"{name} is a {type(module).__qualname__}"
        if isinstance(module, Mistral4Experts):
            if module.exchange is not None:
                yield "experts are spread over processes"
            if module.backend not in ("auto", "cpu"):
                yield f"its experts are to run on {module.backend!r}"
        if isinstance(module, LoraLinear) and module.lora_magnitude_vector and not module.is_merged:
            yield f"{name} has an adapter of DoRA"
        if isinstance(module, LoraRouter) and not module.is_merged:
            yield f"{name}, a router, has an adapter"
        if isinstance(module, TrainedCopy) and any(module.names_of(adapter) != module.names_of(None) for adapter in names):
            yield f"{name} is saved whole by an adapter that does not act on all rows"
        if isinstance(module, nn.Linear) and not isinstance(module, QuantisedLinear) and module.bias is not None:
            yield f"{name} has a bias"


def _acting(model: nn.Module) -> set[str]:
    """The adapters that act."""
    return {name for _, module in adapted_modules(model) for name in module.names_of(None)}
