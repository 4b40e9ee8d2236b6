"""The estimate of activations against what torch's hooks see a tiny model keep; and rows on their way against routings that are drawn."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_config, tiny_model
from support.multimodal import tiny_multimodal, tiny_vision

from ms4_train.adapters import attach
from ms4_train.config.schema import SftRun
from ms4_train.model import ImageBatch, SequenceLayout
from ms4_train.planning.activations import activations, distinct_ranks

TOKENS = 512
WIDE = {"hidden_size": 256, "moe_intermediate_size": 128, "q_lora_rank": 64, "kv_lora_rank": 32}
WIDE |= {"qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64}
BOTH = {"r": 4, "preset": "attention+experts"}


def run_of(dtype, adapter=None, **training):
    values = {"recipe": "sft", "output_dir": "x", "data": {"train": [{"path": "a"}], "max_length": TOKENS}}
    adapted = {} if adapter is None else {"adapter": adapter}
    return SftRun.model_validate({**values, "model": {"path": "x", "dtype": dtype}, "training": training, **adapted})


def prepared(model, run):
    model.to(getattr(torch, run.model.dtype)).train()
    model.recompute_experts = run.training.recompute_experts
    if run.adapter is not None:
        attach(model, run.adapter)
    return model


def kept_bytes(model, compute):
    """Bytes of distinct memory that autograd keeps of ``compute()``, parameters aside."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in parameters:
            kept[memory.data_ptr()] = (memory.nbytes(), tensor)  # the tensor, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    del result
    return sum(size for size, _ in kept.values())


def text_bytes(model):
    ids_t = torch.randint(20, model.config.vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(0))
    return kept_bytes(model, lambda: model(ids_t, SequenceLayout.from_lengths((TOKENS // 2, TOKENS // 2))))


# bf16 runs operation by operation, as on a GPU. In fp32 compiled kernels keep less: a norm its input alone.
@pytest.mark.parametrize(("dtype", "factor"), [("bfloat16", 1.1), ("float32", 1.4)])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("adapter", [None, {"r": 4, "preset": "attention"}, BOTH], ids=["full", "attention", "experts"])
def test_text(adapter, recompute, dtype, factor):
    run = run_of(dtype, adapter, recompute_experts=recompute)
    model = prepared(tiny_model(tiny_config(**WIDE)), run)
    kept, planned = text_bytes(model), activations(model, run, images=False).kept
    assert kept / 1.05 <= planned <= factor * kept


def test_control_a_layer_that_is_not_counted_would_be_seen():
    run = run_of("bfloat16")
    kept = text_bytes(prepared(tiny_model(tiny_config(**WIDE, num_hidden_layers=3)), run))
    planned = activations(prepared(tiny_model(tiny_config(**WIDE)), run), run, images=False).kept
    assert planned < kept / 1.3


@pytest.mark.parametrize("adapter", [None, {"r": 4, "preset": "vision"}], ids=["full", "vision"])
def test_vision(adapter):
    """Images alone: every token of the rows is a cell of 2 x 2 patches."""
    run = run_of("bfloat16", adapter)
    vision = tiny_vision(hidden_size=128, intermediate_size=256, head_dim=32)
    model = prepared(tiny_multimodal(tiny_config(**WIDE), vision), run)
    side = vision.spatial_merge_size * 8
    grids = ((side, side),) * (TOKENS // 64)
    patches = torch.zeros(sum(rows * columns for rows, columns in grids), vision.num_channels * vision.patch_size**2)
    kept = kept_bytes(model, lambda: model.image_features(ImageBatch(patches, grids)))
    planned = activations(model, run, images=True).kept - activations(model, run, images=False).kept
    assert kept / 1.1 <= planned <= 1.3 * kept


def test_vision_that_is_not_trained_keeps_nothing():
    run = run_of("bfloat16", BOTH)
    model = prepared(tiny_multimodal(tiny_config(**WIDE)), run)
    assert activations(model, run, images=True) == activations(model, run, images=False)


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer():
    plain, saving = (run_of("bfloat16", gradient_checkpointing=checkpointing) for checkpointing in (False, True))
    deep = [tiny_model(tiny_config(**WIDE, num_hidden_layers=layers)) for layers in (4, 5)]
    (four, five), (four_saving, five_saving) = (
        [activations(prepared(model, run), run, images=False).kept for model in deep] for run in (plain, saving)
    )
    stream = TOKENS * 256 * 2
    assert five_saving - four_saving == stream
    assert four_saving - 4 * stream == four - 3 * (five - four)


@pytest.mark.parametrize(("experts", "chosen", "ranks"), [(8, 2, 2), (128, 4, 8), (128, 4, 64), (8, 2, 1)])
def test_distinct_ranks(experts, chosen, ranks):
    generator = torch.Generator().manual_seed(0)
    ids_tk = torch.rand(20_000, experts, generator=generator).topk(chosen).indices
    rank_tk = ids_tk // (experts // ranks)
    drawn = sum(len(set(row)) for row in rank_tk.tolist()) / 20_000
    config = tiny_config(n_routed_experts=experts, num_experts_per_tok=chosen)
    assert distinct_ranks(config, ranks) == pytest.approx(drawn, rel=0.01)
