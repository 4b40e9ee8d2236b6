"""The engine's runner over the model's own modules: on any device, with any adapters and quantised weights, expert-parallel too.

All pieces of a step go through the network in one pass, so that the experts' weights are read once. Prompts from their first token take
the expanded form of attention, everything else the absorbed form over the cache. Decoding alone is replayed from CUDA graphs on a GPU.
Exercise it: ``pytest tests/ms4_train/inference/test_module_runner.py``.

Shape suffixes: t new tokens of all pieces, r wanted rows, d hidden, v vocabulary, n image tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby

import torch
from torch import Tensor, nn

from ms4_kernels.dispatch import runs_triton
from ms4_kernels.invariant import batch_invariant
from ms4_train.inference.graphs import DecodeGraphs, Recorder, cuda_recorder
from ms4_train.inference.paged_cache import PagedLatentCache
from ms4_train.inference.step import StepPiece
from ms4_train.model.images import ImageBatch
from ms4_train.model.layout import SequenceLayout
from ms4_train.model.moe import Mistral4Experts
from ms4_train.model.multimodal import Mistral3ForConditionalGeneration
from ms4_train.model.network import Mistral4ForCausalLM
from ms4_train.model.plan import AttentionPlan
from ms4_train.model.row_segments import RowSegment, row_segments


class ModuleRunner:
    """Implements ``step.Runner``.

    Args:
        model: on one device, where the cache is too. With expert parallelism every rank of the group runs as many steps as the others,
            without pieces where it has none.
        cache: of as many layers and values as the model needs.
        deterministic: a token's hidden state has the same bits whatever shares its step, and however its sequence was cut into pieces.
            Slower: one order of every sum, and the absorbed form of attention for every token.
        recorder: records decode steps for replay. None: as CUDA graphs where Triton's kernels run, not at all elsewhere.
    """

    def __init__(
        self, model: Mistral4ForCausalLM, cache: PagedLatentCache, *, deterministic: bool = False, recorder: Recorder | None = None
    ) -> None:
        self._model = model
        self._cache = cache
        self._deterministic = deterministic
        self._modes: dict[nn.Module, bool] = {}
        if recorder is None and runs_triton(self._device):
            recorder = cuda_recorder(self._device)
        self._graphs: DecodeGraphs | None = None
        if recorder is not None and not _reads_on_host(model):
            self._graphs = DecodeGraphs(self._decode, recorder, self._device, self._table_width)

    @property
    def _device(self) -> torch.device:
        return self._model.model.embed_tokens.weight.device

    @property
    def _table_width(self) -> int:
        """The most blocks that a sequence can have."""
        longest = min(self._model.config.max_position_embeddings, self._cache.num_blocks * self._cache.block_size)
        return -(-longest // self._cache.block_size)

    @property
    def is_invariant(self) -> bool:
        """In deterministic mode."""
        return self._deterministic

    def open(self) -> None:
        """Put the model into evaluation mode and compute what all steps need. Weights must not change until :meth:`close`."""
        self._modes = {module: module.training for module in self._model.modules()}
        self._model.eval()
        self._prepare()

    def close(self) -> None:
        """Leave the model as it was: its modes, and without what was computed for decoding."""
        self._forget_graphs()
        self._model.release_decode()
        default = self._modes.get(self._model, False)  # for what came meanwhile: adapters
        for module in self._model.modules():
            module.training = self._modes.get(module, default)
        self._modes = {}

    @torch.inference_mode()
    def run(self, pieces: Sequence[StepPiece]) -> Tensor:
        """Compute the pieces and write their latents to the cache; see ``step.Runner``.

        Raises:
            ValueError: a piece whose blocks do not hold its tokens.
        """
        if not self._model.is_prepared:
            self._prepare()  # adapters were loaded or dropped
        with self._mode():
            if self._graphs is not None and self._graphs.serves(pieces):
                return _rows(self._graphs.run(pieces), [row for row, piece in enumerate(pieces) if piece.wanted])
            return self._run(pieces)

    @torch.inference_mode()
    def logits(self, hidden_rd: Tensor, adapters: Sequence[str | None]) -> Tensor:
        """Next-token logits, fp32 (fp64 in an fp64 model) [R, V], of rows from :meth:`run`; ``adapters`` are those of the rows."""
        with self._mode(), _for_adapters(adapters, [1] * len(adapters)):
            return self._model.logits(hidden_rd)

    @torch.inference_mode()
    def image_features(self, images: ImageBatch, adapter: str | None) -> Tensor:
        """Embeddings of all image tokens of one request, [N, d].

        Raises:
            ValueError: images that do not fit the vision tower.
        """
        assert isinstance(self._model, Mistral3ForConditionalGeneration), "the engine refuses images for a model without vision"
        with self._mode(), _for_adapters([adapter], [images.patches_pi.shape[0]]):
            return self._model.image_features(images.to(self._device))

    def _run(self, pieces: Sequence[StepPiece]) -> Tensor:
        """One pass over all pieces, in an order of its own: what may take the expanded form first, and by adapter."""
        order = sorted(range(len(pieces)), key=lambda index: self._place(pieces[index]))
        ordered = [pieces[index] for index in order]
        firsts, rows = {}, 0
        for index in order:
            firsts[index] = rows
            rows += len(pieces[index].token_ids)
        with _for_adapters([piece.adapter for piece in ordered], [len(piece.token_ids) for piece in ordered]):
            hidden_td = self._model.model(self._embed(ordered), self._plan(ordered), self._cache)
        return _rows(hidden_td, [firsts[index] + offset for index, piece in enumerate(pieces) for offset in piece.wanted])

    def _place(self, piece: StepPiece) -> tuple[bool, str]:
        return (piece.start > 0 and not self._deterministic, piece.adapter or "")

    def _plan(self, pieces: list[StepPiece]) -> AttentionPlan:
        network = self._model.model
        if not pieces:
            return AttentionPlan.empty(network.rotary, self._device)
        layout = SequenceLayout(
            lengths=tuple(len(piece.token_ids) for piece in pieces),
            starts=tuple(piece.start for piece in pieces),
            blocks=tuple(tuple(piece.blocks) for piece in pieces),
        )
        return AttentionPlan.build(layout, network.config, network.rotary, self._device, self._cache, expands=not self._deterministic)

    def _embed(self, pieces: list[StepPiece]) -> Tensor:
        """Embeddings of the pieces' tokens [t, d], with images in their places."""
        ids_t = torch.tensor([token_id for piece in pieces for token_id in piece.token_ids], dtype=torch.int64)
        embedding_td = self._model.model.embed_tokens(ids_t.to(self._device))
        first = 0
        for piece in pieces:
            if piece.images is not None:
                places_n = torch.tensor(piece.images.offsets, dtype=torch.int64).to(self._device) + first
                embedding_td.index_copy_(0, places_n, piece.images.features_nd.to(embedding_td))
            first += len(piece.token_ids)
        return embedding_td

    def _decode(self, token_b: Tensor, position_b: Tensor, table_bj: Tensor) -> Tensor:
        """One token per sequence, from tensors on the device alone."""
        network = self._model.model
        plan = AttentionPlan.decode(table_bj, position_b, network.config, network.rotary, self._cache)
        return network(network.embed_tokens(token_b), plan, self._cache)

    def _prepare(self) -> None:
        self._forget_graphs()  # they read matrices that are made anew
        with torch.inference_mode(), self._mode():
            self._model.prepare_decode(joins=self._device.type == "cuda")

    def _forget_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.clear()

    def _mode(self) -> AbstractContextManager[object]:
        return batch_invariant() if self._deterministic else nullcontext()


def _reads_on_host(model: Mistral4ForCausalLM) -> bool:
    """Whether experts make the host wait for values: ranks tell each other how many tokens they send, and plain torch reads counts."""
    experts = [module for module in model.modules() if isinstance(module, Mistral4Experts)]
    is_wide = model.model.embed_tokens.weight.dtype == torch.float64  # for which there are no Triton kernels
    return is_wide or any(module.exchange is not None or module.backend not in ("auto", "triton") for module in experts)


def _rows(hidden_td: Tensor, rows: list[int]) -> Tensor:
    """A copy of these rows."""
    return hidden_td.index_select(0, torch.tensor(rows, dtype=torch.int64).to(hidden_td.device))


@contextmanager
def _for_adapters(adapters: Sequence[str | None], lengths: Sequence[int]) -> Iterator[None]:
    """Say inside which rows are for which adapter; nothing is said where all are for the model as it stands."""
    if not any(adapters):
        yield
        return
    segments, first = [], 0
    for adapter, group in groupby(zip(adapters, lengths, strict=True), key=lambda item: item[0]):
        rows = sum(length for _, length in group)
        segments.append(RowSegment(adapter, first, first + rows))
        first += rows
    with row_segments(segments):
        yield
