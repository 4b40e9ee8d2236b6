"""Whether one checkpoint is the other in a new layout: the same tokens through both, block by block, until something differs.

Both networks run in fp32 with the same modules (``layerwise``), from weights that are rounded to one type where the conversion rounded
them; a lossless conversion therefore gives the same bits after every block, and the default tolerance is 0. Where the result's layout
loses something (FP8 made from wider weights), each of its blocks is also given the source's own input, so that a block's error is its own:
neither what came before it nor a token that went to another expert counts against it; and every weight is compared too, for blocks forgive
some mistakes (gate and up of small values swapped). What no prompt reaches (vision, experts that no token goes to, the embedding's other
rows) is always compared value by value, and scales of activations, which only servers use, one by one.
Exercise it: ``ms4 weights verify FOLDER --against SOURCE`` and ``pytest tests/ms4_train/weights/compare/test_verify.py``.

Not covered: a change of a lossy result within its tolerance (a bit of an FP8 code made from bf16: sums see it), a value so small that no
fp32 sum moves with it (``diff`` sees it), tokenizers and other companions, and the rounding of activations by servers.

Shape suffixes: t tokens, d hidden, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ms4_train.errors import WeightsError
from ms4_train.model import SequenceLayout
from ms4_train.weights.compare.cause import Cause, find_cause, name_mistake
from ms4_train.weights.compare.config_diff import ConfigDifference, compare_configs
from ms4_train.weights.compare.diff import compare_pieces
from ms4_train.weights.compare.layerwise import HALVES, Half, LayerwiseModel
from ms4_train.weights.compare.logit_statistics import LogitStatistics
from ms4_train.weights.compare.piece_error import PieceError, common_dtype, compare_rounded
from ms4_train.weights.layouts.pieces import Part, Piece
from ms4_train.weights.layouts.tables import Layout
from ms4_train.weights.reading.checkpoint import Checkpoint

Progress = Callable[[int, int, str], None]
"""Called with (stages done, stages in all, the stage that comes)."""

MAX_TOKENS = 8192
FP8_TOLERANCE = 0.25
"""Rounding to FP8's four significant bits moves a weight by up to 1/16, by 2.6 % in the mean square; a block is a chain of three or four
matrices. On tiny random models the worst token of a block is off by 0.13; a matrix with the wrong sign, order or place makes 1."""
FP8_WEIGHT_TOLERANCE = 0.1
"""For a matrix: 2.6 %, half as much again where gate and up came to share a scale, and a margin for values that outgrew a kept scale."""
FP4_TOLERANCE = 0.6
"""Likewise for NVFP4: up to 1/4 for a weight, some 10 % in the mean square; 0.29 on tiny random models."""
FP4_WEIGHT_TOLERANCE = 0.25
"""For a matrix: some 10 % in the mean square, and a margin."""
HEAD_TOLERANCE = 1e-5
"""fp32 sums of some thousand products in another order: 2^-24 for each step of a few dozen, and a margin of ten."""
HALF_TOLERANCE = 0.01
"""Between bf16 and fp16, whose weights differ by up to 2^-8."""


@dataclass(frozen=True)
class Expectation:
    """How far a right conversion may be from its source.

    Attributes:
        tolerance: largest error of a block.
        reason: why.
        plain_tolerance: of the embedding and of weights that no layout quantises.
        weight_tolerance: relative error (Frobenius) of a quantised matrix; None where blocks tell everything.
    """

    tolerance: float
    reason: str
    plain_tolerance: float = 0.0
    weight_tolerance: float | None = None


@dataclass(frozen=True)
class StageError:
    """One block of the network in source and result.

    Attributes:
        name: ``embedding``, ``layer 3, attention``, ``layer 3, experts``, ``head``.
        prefixes: of the names of its pieces.
        error: largest over the tokens of |difference| / |source| (norms), of what the block adds to the residual stream.
        drift: the same of the residual stream itself, everything before included.
        tolerance: above it the block fails.
    """

    name: str
    prefixes: tuple[str, ...]
    error: float
    drift: float
    tolerance: float

    @property
    def fails(self) -> bool:
        """Whether the error is beyond the tolerance, or no number."""
        return not self.error <= self.tolerance


@dataclass(frozen=True)
class LogitsReport:
    """What ``compare_logits`` found.

    Attributes:
        stages: in the order of the network.
        config: keys of the text network's arithmetic that differ.
        weights: pieces beyond their tolerance, worst first, of those that were compared value by value.
        num_weights: how many those were.
        activation_scales: names of the pieces whose scale of activations is not the source's.
        reached: routed experts that tokens went to, of ``num_experts``, in the source.
        cause: the piece that is furthest off, of the first failing block or of ``weights``, and what it looks like.
    """

    expectation: Expectation
    num_sequences: int
    num_tokens: int
    stages: tuple[StageError, ...]
    logits: LogitStatistics
    config: tuple[ConfigDifference, ...]
    weights: tuple[PieceError, ...]
    num_weights: int
    activation_scales: tuple[str, ...]
    reached: int
    num_experts: int
    cause: Cause | None = None

    @property
    def first_failing(self) -> StageError | None:
        """The first block beyond the tolerance."""
        return next((stage for stage in self.stages if stage.fails), None)

    @property
    def passed(self) -> bool:
        """Whether the result is the source within the tolerance."""
        return self.first_failing is None and not (self.config or self.weights or self.activation_scales) and self.logits.is_finite


def expectation_of(source: Checkpoint, result: Checkpoint) -> Expectation:
    """What a right conversion from one layout and type to the other costs."""
    before, after = source.layout, result.layout
    if after.encoding == "plain":
        if {source.dtype, result.dtype} == {torch.bfloat16, torch.float16}:
            return Expectation(HALF_TOLERANCE, "bf16 and fp16 keep different bits", HALF_TOLERANCE)
        return Expectation(0.0, "the same weights, rounded once to the result's type")
    if before is after or (before, after) == (Layout.HF_FP8, Layout.NATIVE_FP8):
        count = sum(not _same_number(source.weight_scale(piece), result.weight_scale(piece)) for piece in _in_both(source, result))
        if not count or after.encoding != "fp8":
            return Expectation(0.0, "the same codes and scales")
        reason = f"{count:,} scales are not the source's: FP8 quantised anew"
        return Expectation(FP8_TOLERANCE, reason, weight_tolerance=FP8_WEIGHT_TOLERANCE)
    if after.encoding == "fp8":
        return Expectation(FP8_TOLERANCE, "FP8 keeps four significant bits of a weight", weight_tolerance=FP8_WEIGHT_TOLERANCE)
    return Expectation(FP4_TOLERANCE, "NVFP4 keeps four bits of a weight", weight_tolerance=FP4_WEIGHT_TOLERANCE)


def fixed_sequences(vocab_size: int, count: int = 4, length: int = 24) -> list[list[int]]:
    """Token ids for folders without a tokenizer: spread over the vocabulary, the same on every machine."""
    return [[(7919 * (start * length + step) + 104729 * start) % vocab_size for step in range(length)] for start in range(count)]


def compare_logits(
    source: Checkpoint,
    result: Checkpoint,
    sequences: Sequence[Sequence[int]],
    *,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> LogitsReport:
    """Run the same tokens through two checkpoints.

    Args:
        source: what the result should be.
        result: the checkpoint to judge.
        sequences: token ids of each prompt.
        tolerance: largest error of a block; default: ``expectation_of`` the pair.
        progress: told which block comes.

    Raises:
        WeightsError: the two are not of one shape, a token is out of range, there are too many, or a file cannot be read.
    """
    _check(source, result, sequences)
    expectation = expectation_of(source, result) if tolerance is None else Expectation(tolerance, "as asked for", tolerance)
    layout = SequenceLayout.from_lengths([len(sequence) for sequence in sequences])
    ids_t = torch.tensor([token for sequence in sequences for token in sequence])
    run = _Run(source, result, ids_t, layout, expectation, progress)
    stages, logits = run.stages(), run.logits
    compared, wrong = _compare_weights(source, result, expectation, run.source.experts_reached, progress)
    first = next((stage for stage in stages if stage.fails), None)
    cause = None if first is None else find_cause(source, result, first.prefixes, first.tolerance)
    if cause is None and wrong:
        cause = name_mistake(source, result, wrong[0], expectation.weight_tolerance or 0.0)
    arithmetic = [found for found in compare_configs(source.config, result.config) if found.is_computational]
    return LogitsReport(
        expectation=expectation,
        num_sequences=len(sequences),
        num_tokens=len(ids_t),
        stages=tuple(stages),
        logits=logits,
        config=tuple(found for found in arithmetic if not found.key.startswith("vision.")),
        weights=wrong,
        num_weights=compared,
        activation_scales=_wrong_activation_scales(source, result),
        reached=len(run.source.experts_reached),
        num_experts=source.config.text.num_hidden_layers * source.config.text.n_routed_experts,
        cause=cause,
    )


class _Run:
    """Both networks on their way through the layers; each block's weights are held once at a time."""

    def __init__(
        self,
        source: Checkpoint,
        result: Checkpoint,
        ids_t: Tensor,
        layout: SequenceLayout,
        expectation: Expectation,
        progress: Progress | None,
    ) -> None:
        def round_to(piece: Piece) -> torch.dtype | None:
            return common_dtype(source, result, piece)

        self.source, self.result = LayerwiseModel(source, round_to), LayerwiseModel(result, round_to)
        self.expectation = expectation
        self.is_exact = is_exact = expectation.tolerance == 0
        self.ids_t = ids_t
        self.plan = self.source.plan(layout)
        # The result's second half of tokens always gets the source's input. In an exact comparison the shapes of both runs must be equal,
        # for a product's last bits depend on its shape; and the first difference is its block's own anyway.
        self.result_plan = self.result.plan(layout if is_exact else SequenceLayout.from_lengths(layout.lengths * 2))
        self.logits = LogitStatistics(len(ids_t))
        self._progress = progress
        self._total = 2 * source.config.text.num_hidden_layers + 2
        self._done = 0

    def stages(self) -> list[StageError]:
        self._say("embedding")
        mine_td, theirs_td = self.source.embed(self.ids_t), self.result.embed(self.ids_t)
        error = token_error(mine_td, theirs_td)
        found = [StageError("embedding", ("model.embed_tokens.",), error, error, self.expectation.plain_tolerance)]
        for layer in range(self.source.config.num_hidden_layers):
            for half in HALVES:
                name = f"layer {layer}, {half}"
                self._say(name)
                mine_delta_td = self.source.block(layer, half, mine_td, self.plan)
                both_td = theirs_td if self.is_exact else torch.cat((theirs_td, mine_td))
                both_delta_td = self.result.block(layer, half, both_td, self.result_plan)
                mine_td, theirs_td = mine_td + mine_delta_td, theirs_td + both_delta_td[: len(theirs_td)]
                error = token_error(mine_delta_td, both_delta_td[-len(mine_td) :])
                found.append(StageError(name, _prefixes(layer, half), error, token_error(mine_td, theirs_td), self.expectation.tolerance))
        self._say("head")
        found.append(self._head(mine_td, theirs_td))
        return found

    def _head(self, mine_td: Tensor, theirs_td: Tensor) -> StageError:
        count = len(mine_td)
        squares_t, squares_difference_t = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        both_td = theirs_td if self.is_exact else torch.cat((theirs_td, mine_td))
        for (start, mine_tv), (_, both_tv) in zip(self.source.logits(mine_td), self.result.logits(both_td), strict=True):
            self.logits.add(start, mine_tv, both_tv[:count])
            squares_t += mine_tv.double().square().sum(dim=1)
            squares_difference_t += (both_tv[-count:].double() - mine_tv).square().sum(dim=1)
        self._done = self._total
        # The head is plain everywhere, but where the result has twice the tokens its products add up in another order.
        tolerance = 0.0 if self.is_exact else max(HEAD_TOLERANCE, self.expectation.plain_tolerance)
        error = _ratio(squares_difference_t, squares_t)
        return StageError("head", ("model.norm.", "lm_head."), error, self.logits.max_relative_error, tolerance)

    def _say(self, name: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, name)
        self._done += 1


def _prefixes(layer: int, half: Half) -> tuple[str, ...]:
    norm, block = ("input_layernorm", "self_attn") if half == "attention" else ("post_attention_layernorm", "mlp")
    return f"model.layers.{layer}.{norm}.", f"model.layers.{layer}.{block}."


def token_error(source_td: Tensor, result_td: Tensor) -> float:
    """Largest over the tokens of |result - source| / |source|; a token's own norm counts as at least the median one."""
    return _ratio((result_td.double() - source_td).square().sum(dim=1), source_td.double().square().sum(dim=1))


def _ratio(squares_difference_t: Tensor, squares_t: Tensor) -> float:
    floor = squares_t.median()
    ratios_t = (squares_difference_t / squares_t.clamp(min=float(floor))).sqrt()
    ratios_t[squares_difference_t == 0] = 0.0
    return float(ratios_t.nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def _in_both(source: Checkpoint, result: Checkpoint) -> list[Piece]:
    theirs = result.pieces()
    return [piece for piece in source.pieces().values() if theirs.get(piece.name) == piece]


def _compare_weights(
    source: Checkpoint, result: Checkpoint, expectation: Expectation, reached: set[tuple[int, int]], progress: Progress | None
) -> tuple[int, tuple[PieceError, ...]]:
    """How many pieces were compared, and those beyond their tolerance, worst first: all, or those that blocks do not tell of."""
    has_loss = expectation.weight_tolerance is not None

    def is_unseen(piece: Piece) -> bool:
        if piece.part is Part.EXPERT:
            return (piece.layer, piece.expert) not in reached
        return piece.part is Part.VISION or piece.name == "model.embed_tokens.weight"

    def say(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, "weights")

    def is_wrong(piece: Piece, error: PieceError) -> bool:
        if error.is_identical:
            return False
        if error.same_codes is not None and (error.same_scales or (error.same_codes and not _is_rounded_scale(source, result, piece))):
            return True  # codes are made for their scale: one does not change without the other
        is_quantised = has_loss and result.place(piece).encoding != "plain"
        tolerance = expectation.weight_tolerance if is_quantised else expectation.plain_tolerance
        assert tolerance is not None
        return not 0 < error.relative_error <= tolerance

    wanted = [piece for piece in _in_both(source, result) if has_loss or is_unseen(piece)]
    errors = compare_pieces(source, result, wanted, compare=compare_rounded, progress=say)
    wrong = [error for piece, error in zip(wanted, errors, strict=True) if is_wrong(piece, error)]
    return len(wanted), tuple(sorted(wrong, key=lambda error: -error.relative_error))


def _same_number(mine: Tensor | None, theirs: Tensor | None) -> bool:
    return mine is theirs if mine is None or theirs is None else float(mine) == float(theirs)


def _is_rounded_scale(source: Checkpoint, result: Checkpoint, piece: Piece) -> bool:
    """Whether the result's weight scale is the source's in a narrower type."""
    mine, theirs = source.weight_scale(piece), result.weight_scale(piece)
    return mine is not None and theirs is not None and _same_number(mine.to(theirs.dtype), theirs)


def _wrong_activation_scales(source: Checkpoint, result: Checkpoint) -> tuple[str, ...]:
    """Names of pieces, quantised alike on both sides, whose scale of activations was lost or is another one."""
    if source.layout.encoding != result.layout.encoding or source.layout.encoding == "plain":
        return ()
    known = source.pieces()

    def expected(piece: Piece) -> Tensor | None:
        mine = source.activation_scale(piece)
        if mine is None or (source.layout, result.layout) != (Layout.NATIVE_FP8, Layout.HF_FP8) or piece.part is not Part.EXPERT:
            return mine
        # Gate and up have one input and come to share its larger scale.
        other = {"gate_proj": "up_proj", "up_proj": "gate_proj"}.get(piece.matrix, piece.matrix)
        partner = source.activation_scale(known[piece.name.replace(piece.matrix, other)])
        return mine if partner is None else torch.maximum(mine, partner)

    wanted = ((piece, expected(piece)) for piece in _in_both(source, result))
    return tuple(piece.name for piece, mine in wanted if mine is not None and not _same_number(mine, result.activation_scale(piece)))


def _check(source: Checkpoint, result: Checkpoint, sequences: Sequence[Sequence[int]]) -> None:
    mine, theirs = ({name: piece for name, piece in side.pieces().items() if piece.part is not Part.VISION} for side in (source, result))
    for name in dict.fromkeys([*mine, *theirs]):
        if name not in mine or name not in theirs:
            what = f"is not in the {'result' if name in mine else 'source'}"
        elif mine[name].shape != theirs[name].shape:
            what = f"has shape {list(theirs[name].shape)}, the source's {list(mine[name].shape)}"
        else:
            continue
        fix = "name the folder that it was made from."
        raise WeightsError(f"{what}: these are two different models.", file=result.folder, key=name, fix=fix)
    if not sequences or not all(sequences):
        raise WeightsError("there is no token to run.", file=result.folder, fix="give prompts with text in them.")
    total = sum(map(len, sequences))
    if total > MAX_TOKENS:
        raise WeightsError(f"the prompts have {total:,} tokens, above the limit of {MAX_TOKENS:,}.", fix="give fewer or shorter ones.")
    vocab_size, largest = source.config.text.vocab_size, max(map(max, sequences))
    if largest >= vocab_size or min(map(min, sequences)) < 0:
        what = f"token {largest:,} is out of range; the vocabulary has {vocab_size:,}."
        raise WeightsError(what, file=source.folder, fix="use the tekken.json of this model.")
