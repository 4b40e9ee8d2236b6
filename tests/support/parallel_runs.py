"""The same few training steps on one process and on several, and how far apart they are.

A step has MICRO_BATCHES micro batches per rank; ranks get packed rows of different lengths with different numbers of trained tokens. A
single process takes the rows of all ranks one after the other, so losses, gradients and norms must agree. A model with a vision tower
gets an image in the first micro batch of the first rank, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from support.models import tiny_config, tiny_model
from support.multimodal import IMG, image_batch, random_pixels, tiny_multimodal, tiny_vision
from torch import Tensor
from torch.nn import functional

from ms4_train.config.schema import TrainingSection
from ms4_train.model import ImageBatch, Mistral3ForConditionalGeneration, Mistral4ForCausalLM, SequenceLayout, init_parameter
from ms4_train.parallel import StatePiece, TrainEngine, deepspeed_setup
from ms4_train.parallel.parameters import STATE_TENSORS, expert_parameters, gather_experts, trained_parameters

MICRO_BATCHES = 2
LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 0.5
VOCABULARY = 61
TRAINING = TrainingSection(weight_decay=0.1, max_grad_norm=MAX_GRAD_NORM)


def small_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Mistral4ForCausalLM:
    """Two layers, 8 experts, top-2, with every parameter random (norms too, so that their gradients are not alike)."""
    config = tiny_config(vocab_size=VOCABULARY, hidden_size=32, moe_intermediate_size=16)
    model = tiny_model(config, seed=seed).train()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return model.to(dtype)


def small_multimodal() -> Mistral3ForConditionalGeneration:
    """The same with a vision tower of one layer."""
    config = tiny_config(vocab_size=VOCABULARY, hidden_size=32, moe_intermediate_size=16)
    vision = tiny_vision(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, head_dim=8, patch_size=4)
    model = tiny_multimodal(config, vision)
    return model.train()  # type: ignore[return-value]


def randomise_adapters(model: Mistral4ForCausalLM, seed: int = 5) -> None:
    """Adapters that change something: B starts at zero, and then A has no gradient."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            init_parameter(name, parameter.data, seed, std=0.1)


@dataclass(frozen=True)
class Rows:
    """One micro batch of one rank."""

    input_ids_t: Tensor
    target_ids_t: Tensor
    lengths: tuple[int, ...]
    images: ImageBatch | None = None


def rows_of(step: int, micro_batch: int, rank: int) -> Rows:
    """Deterministic rows; the second rank has fewer tokens, and in every third step no trained token in its first micro batch."""
    generator = torch.Generator().manual_seed(1000 * step + 10 * micro_batch + rank)
    lengths = (9, 6) if rank % 2 == 0 else (5, 3, 2)
    ids_t = torch.randint(VOCABULARY, (sum(lengths),), generator=generator)
    target_t = torch.randint(VOCABULARY, (sum(lengths),), generator=generator)
    target_t[torch.rand(len(target_t), generator=generator) < 0.3] = -100
    if rank == 1 and micro_batch == 0 and step % 3 == 1:
        target_t[:] = -100
    return Rows(ids_t, target_t, lengths)


def rows_for(model: Mistral4ForCausalLM, step: int, micro_batch: int, rank: int) -> Rows:
    """The rows for this model; those of a text model are :func:`rows_of`."""
    rows = rows_of(step, micro_batch, rank)
    if not isinstance(model, Mistral3ForConditionalGeneration):
        return rows
    ids_t = torch.where(rows.input_ids_t == IMG, IMG + 1, rows.input_ids_t)
    if rank or micro_batch:
        return replace(rows, input_ids_t=ids_t)
    ids_t[1:5] = IMG
    return replace(rows, input_ids_t=ids_t, images=image_batch(random_pixels([(2, 2)], model.vision_config, step), model.vision_config))


def loss_sum(model: Mistral4ForCausalLM, rows: Rows) -> Tensor:
    """Sum of the negative log likelihoods, by torch's own cross-entropy."""
    logits_tv = model.logits(model(rows.input_ids_t, SequenceLayout.from_lengths(rows.lengths), images=rows.images))
    return functional.cross_entropy(logits_tv, rows.target_ids_t, ignore_index=-100, reduction="sum")


@dataclass
class StepRecord:
    """What one optimizer step did; gradients are full tensors, before clipping."""

    loss: float
    norm: float
    gradients: dict[str, Tensor]


def run_steps(
    engine: TrainEngine, model: Mistral4ForCausalLM, world_size: int, steps: range, gradients: bool = True
) -> Iterator[StepRecord]:
    """Train on the rows of all ``world_size`` ranks: this rank's own, or, in a single process, everybody's."""
    ranks = [engine.mesh.rank] if engine.mesh.world_size > 1 else list(range(world_size))
    for step in steps:
        trained = sum(
            int((rows_of(step, micro, rank).target_ids_t != -100).sum()) for micro in range(MICRO_BATCHES) for rank in range(world_size)
        )
        loss = 0.0
        for micro in range(MICRO_BATCHES):
            for rank in ranks:
                part = loss_sum(model, rows_for(model, step, micro, rank)) / trained
                engine.backward(part, is_last_micro_batch=micro == MICRO_BATCHES - 1)
                loss += part.item()
        record = StepRecord(engine.mesh.all_reduce_sum(loss), 0.0, full_gradients(engine, model) if gradients else {})
        record.norm = engine.step(LEARNING_RATE, MAX_GRAD_NORM)
        yield record


def full_gradients(engine: TrainEngine, model: Mistral4ForCausalLM) -> dict[str, Tensor]:
    """Every gradient as it would be in one process: read through DeepSpeed where it holds them, experts gathered."""
    through_deepspeed = type(engine).__name__ == "DeepSpeedEngine"
    if through_deepspeed:
        from deepspeed.utils import safe_get_full_grad
    sharded = expert_parameters(model) if engine.mesh.expert_parallel_size > 1 else {}
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = safe_get_full_grad(parameter) if through_deepspeed else parameter.grad
            assert value is not None, name
            gradients[name] = (gather_experts(value, engine.mesh) if name in sharded else value).clone()
    return gradients


def relative(value: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the largest expected value."""
    return ((value.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-12)).item()


def compare_records(records: list[StepRecord], expected: list[StepRecord]) -> dict[str, float]:
    """Largest error over all steps: loss absolute, norm relative, gradients relative to each parameter's largest."""
    assert len(records) == len(expected) > 0
    worst = {"loss": 0.0, "norm": 0.0, "gradient": 0.0}
    for record, other in zip(records, expected, strict=True):
        worst["loss"] = max(worst["loss"], abs(record.loss - other.loss))
        worst["norm"] = max(worst["norm"], abs(record.norm - other.norm) / other.norm)
        assert record.gradients.keys() == other.gradients.keys()
        for name, gradient in record.gradients.items():
            worst["gradient"] = max(worst["gradient"], relative(gradient, other.gradients[name]))
    return worst


def compare_engines(engine: TrainEngine, reference: TrainEngine) -> dict[str, float]:
    """Largest difference of the weights (absolute) and of the optimizer state (relative) between two engines' models.

    ``held_once``: whether the ranks' pieces of state hold every value exactly once.
    """
    names = [name for name, _ in reference.model.named_parameters()]
    weight = max(
        (value.double() - reference.model.get_parameter(name).double()).abs().max().item() for name, value in engine.full_parameters(names)
    )
    (stored, once), expected = gathered_state(engine), stored_state(reference)
    assert stored.keys() == expected.keys()
    assert all(state["step"] == expected[name]["step"] for name, state in stored.items())
    worst = max(relative(state[kind], expected[name][kind]) for name, state in stored.items() for kind in STATE_TENSORS)
    return {"weight": weight, "state": worst, "held_once": once}


def stored_state(engine: TrainEngine) -> dict[str, dict[str, Tensor]]:
    """All state as full tensors on every rank; every value comes from exactly one rank, or this fails. Collective."""
    stored, once = gathered_state(engine)
    assert once
    return stored


def gathered_state(engine: TrainEngine) -> tuple[dict[str, dict[str, Tensor]], bool]:
    """(full tensors put together from the pieces of all ranks, whether every value came from exactly one rank). Collective."""
    pieces: dict[str, list[StatePiece]] = {}
    for piece in engine.export_state():
        pieces.setdefault(piece.name, []).append(piece)
    trained = {item.name: item.full_shape for item in trained_parameters(engine.model, engine.mesh)}
    assert pieces.keys() <= trained.keys()
    steps = {str(piece.step) for own in pieces.values() for piece in own}
    steps = {int(step) for found in engine.mesh.all_gather_json(sorted(steps)) for step in found}
    assert len(steps) == 1, steps
    stored, once = {}, True
    for name, shape in trained.items():
        # Sums of integers are exact, so that the bits come through as they are.
        size = math.prod(shape)
        bits = torch.zeros(len(STATE_TENSORS), size, dtype=torch.int32)
        times = torch.zeros(size, dtype=torch.int32)
        for piece in pieces.get(name, []):
            assert piece.full_shape == shape, name
            times[piece.start : piece.stop] += 1
            for row, kind in zip(bits, STATE_TENSORS, strict=True):
                assert piece.tensors[kind].shape == (piece.stop - piece.start,)
                row[piece.start : piece.stop] = piece.tensors[kind].view(torch.int32)
        bits, times = engine.mesh.all_reduce_sum(bits), engine.mesh.all_reduce_sum(times)
        once = once and bool((times == 1).all())
        whole = {kind: row.view(torch.float32).view(shape) for kind, row in zip(STATE_TENSORS, bits, strict=True)}
        stored[name] = {**whole, "step": torch.tensor(next(iter(steps)))}
    return stored, once


def reader(stored: Mapping[str, Mapping[str, Tensor]]) -> Callable[[str, int, int], dict[str, Tensor]]:
    """What ``import_state`` takes, out of full tensors."""

    def read(name: str, start: int, stop: int) -> dict[str, Tensor]:
        state = stored[name]
        return {kind: value.flatten()[start:stop] if kind in STATE_TENSORS else value for kind, value in state.items()}

    return read


def same_bits(left: dict[str, dict[str, Tensor]], right: dict[str, dict[str, Tensor]]) -> bool:
    """Whether two stored states are equal, bit for bit."""
    return left.keys() == right.keys() and all(
        state["step"] == right[name]["step"]
        and all(torch.equal(state[kind].view(torch.int32), right[name][kind].view(torch.int32)) for kind in STATE_TENSORS)
        for name, state in left.items()
    )


@contextmanager
def everything_partitioned() -> Iterator[None]:
    """DeepSpeed keeps small parameters whole, and all of ours are small; take that away."""
    config = deepspeed_setup.engine_config
    off = {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}

    def changed(*arguments: Any, **options: Any) -> dict[str, Any]:
        made = config(*arguments, **options)
        return {**made, "zero_optimization": made["zero_optimization"] | off}

    deepspeed_setup.engine_config = changed
    try:
        yield
    finally:
        deepspeed_setup.engine_config = config
