"""Models from every public layout: values by the layout's definition, memory of the model plus a little, each rank its own bytes."""

import re
import subprocess
import sys

import pytest
import torch
from support import layouts
from support.checkpoints import our_logits, rewrite

from ms4_kernels.quantised import Fp8Weight, Nvfp4Weight
from ms4_train.errors import WeightsError
from ms4_train.model.quantised import quantised_bytes, quantised_modules
from ms4_train.weights.reading import loading
from ms4_train.weights.reading.checkpoint import open_checkpoint
from ms4_train.weights.reading.loading import first_expert, load_model

REFERENCE = layouts.reference_pieces()
MAKERS = {
    "hf": (layouts.hf_folder, lambda: REFERENCE),
    "native": (layouts.native_folder, lambda: REFERENCE),
    "hf-fp8": (layouts.hf_fp8_folder, lambda: layouts.hf_fp8_reference_pieces(REFERENCE)),
    "native-fp8": (layouts.native_fp8_folder, lambda: layouts.fp8_reference_pieces(REFERENCE)),
    "nvfp4": (layouts.nvfp4_folder, lambda: layouts.nvfp4_reference_pieces(REFERENCE)),
}
QUANTISED = ["hf-fp8", "native-fp8", "nvfp4"]
EXPERTS = re.compile(r"(.*experts\.)\d+\.(gate|up|down)_proj\.weight")


def stacked(pieces, start=0, stop=8):
    """Reference pieces as the model's parameters."""
    found = {name: value for name, value in pieces.items() if not EXPERTS.fullmatch(name)}
    for prefix in {match[1] for match in map(EXPERTS.fullmatch, pieces) if match}:
        gate, up, down = (
            torch.stack([pieces[f"{prefix}{expert}.{which}_proj.weight"] for expert in range(start, stop)])
            for which in ("gate", "up", "down")
        )
        found |= {f"{prefix}gate_up_proj": torch.cat([gate, up], 1), f"{prefix}down_proj": down}
    return found


@pytest.mark.parametrize("expert_range", [None, (2, 5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", MAKERS)
def test_values_are_the_layouts_definition(tmp_path, layout, dtype, expert_range):
    make, reference = MAKERS[layout]
    make(tmp_path, shards=2)
    model = load_model(tmp_path, dtype=dtype, expert_range=expert_range)
    expected = stacked(reference(), *(expert_range or (0, 8)))
    parameters = dict(model.named_parameters())
    assert parameters.keys() == expected.keys()
    for name, parameter in parameters.items():
        assert parameter.dtype == dtype
        assert torch.equal(parameter.bfloat16(), expected[name]), name
    if expert_range is not None:
        assert first_expert(model.get_submodule("model.layers.0.mlp.experts")) == 2


def test_both_families_give_equal_logits(tmp_path):
    layouts.hf_folder(tmp_path / "hf")
    layouts.native_folder(tmp_path / "native")
    hf, native = (load_model(tmp_path / name, dtype=torch.float32) for name in ("hf", "native"))
    assert torch.equal(our_logits(hf), our_logits(native))
    layouts.both_folder(tmp_path / "both")
    hf, native = (load_model(tmp_path / "both", dtype=torch.float32, family=family) for family in ("hf", "native"))
    assert not torch.equal(our_logits(hf), our_logits(native))  # the fusion of the experts' scales is lossy


@pytest.mark.parametrize("expert_range", [None, (6, 8)])
@pytest.mark.parametrize("layout", QUANTISED)
def test_weights_kept_quantised_are_the_same_values(tmp_path, layout, expert_range):
    make, reference = MAKERS[layout]
    make(tmp_path)
    kept = load_model(tmp_path, dtype=torch.bfloat16, dequantise=False, expert_range=expert_range)
    expected = stacked(reference(), *(expert_range or (0, 8)))
    modules = dict(quantised_modules(kept))
    assert modules
    for name, module in modules.items():
        value = module.value()
        assert isinstance(value, Nvfp4Weight if layout == "nvfp4" else Fp8Weight)
        where = name if name in expected else f"{name}.weight"
        assert torch.equal(value.dequantise(torch.bfloat16), expected.pop(where)), name
        scale = value.global_scale if isinstance(value, Nvfp4Weight) else value.scale
        assert scale.shape[-1] == (2 if name.endswith("experts.gate_up_proj") and layout != "hf-fp8" else 1)
    attention = [name for name in modules if "self_attn" in name]
    assert bool(attention) == (layout != "nvfp4")
    for name, parameter in kept.named_parameters():
        assert torch.equal(parameter, expected.pop(name)), name
    assert not expected
    if expert_range is None:
        plain = load_model(tmp_path, dtype=torch.bfloat16)
        assert torch.equal(our_logits(kept), our_logits(plain))
        checkpoint = open_checkpoint(tmp_path)
        stored = sum(item.num_bytes for name, item in checkpoint.stored.items() if item.info.dtype in ("U8", "F8_E4M3"))
        assert stored <= quantised_bytes(kept) < stored * 1.02


@pytest.mark.parametrize("dequantise", [True, False])
@pytest.mark.parametrize("layout", MAKERS)
def test_reading_in_chunks_changes_nothing(tmp_path, monkeypatch, layout, dequantise):
    MAKERS[layout][0](tmp_path)
    whole = load_model(tmp_path, dtype=torch.bfloat16, dequantise=dequantise).state_dict()
    monkeypatch.setattr(loading, "CHUNK_BYTES", 5 * 64 * 2)  # five rows of 64 in bf16: pieces of 32 and 64 rows do not divide evenly
    parts = load_model(tmp_path, dtype=torch.bfloat16, dequantise=dequantise).state_dict()
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name


@pytest.mark.parametrize("layout", ["hf", "native"])
def test_plain_layouts_have_nothing_to_keep(tmp_path, layout):
    MAKERS[layout][0](tmp_path)
    model = load_model(tmp_path, dtype=torch.bfloat16, dequantise=False)
    assert not dict(quantised_modules(model))


@pytest.mark.parametrize("dequantise", [True, False])
@pytest.mark.parametrize(
    ("layout", "stored"),
    [
        ("native-fp8", "layers.0.shared_experts.w2.weight"),
        ("hf-fp8", "language_model.model.layers.1.mlp.experts.down_proj"),
        ("nvfp4", "layers.1.experts.3.w1.weight_scale"),
    ],
)
def test_codes_that_are_not_numbers_are_refused(tmp_path, layout, stored, dequantise):
    MAKERS[layout][0](tmp_path)

    def damage(tensors):
        tensors[stored].view(torch.uint8).view(-1)[77] = 0xFF

    rewrite(tmp_path, damage)
    with pytest.raises(WeightsError, match="NaN") as caught:
        load_model(tmp_path, dtype=torch.bfloat16, dequantise=dequantise)
    assert caught.value.key == stored


@pytest.mark.parametrize("layout", MAKERS)
def test_progress_ends_at_the_bytes_of_the_pieces(tmp_path, layout):
    MAKERS[layout][0](tmp_path)
    calls = []
    load_model(tmp_path, dtype=torch.bfloat16, progress=lambda done, total: calls.append((done, total)))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert calls[-1][0] == calls[-1][1] > 100_000
    assert len({total for _, total in calls}) == 1


def bytes_read():
    with open("/proc/self/io") as handle:  # noqa: PTH123 - the counters of this process
        return int(next(line for line in handle if line.startswith("rchar")).split()[1])


@pytest.mark.parametrize("dequantise", [True, False])
@pytest.mark.parametrize("layout", MAKERS)
def test_a_rank_reads_its_own_experts_only(tmp_path, layout, dequantise):
    """Control: the same counter sees the other experts when all are read."""
    wide = layouts.Tiny(moe_intermediate_size=256, n_routed_experts=16)
    make, _ = MAKERS[layout]
    make(tmp_path, tiny=wide)
    checkpoint = open_checkpoint(tmp_path)
    experts = [piece for piece in checkpoint.pieces().values() if piece.expert is not None]
    spans = {piece.name: checkpoint.span(piece) for piece in experts}
    theirs = sum(spans[piece.name][2] - spans[piece.name][1] for piece in experts if not 4 <= piece.expert < 6)
    counts = []
    for expert_range in ((4, 6), None):
        before = bytes_read()
        load_model(tmp_path, dtype=torch.bfloat16, expert_range=expert_range, dequantise=dequantise)
        counts.append(bytes_read() - before)
    part, whole = counts
    assert theirs > 500_000
    # NVFP4 has block scales beside the codes, an eighth more; block and chunk counters are exact.
    assert theirs <= whole - part <= theirs * (1.126 if layout == "nvfp4" else 1.001)


PEAK = """
import sys, torch
from ms4_train.model.quantised import quantised_bytes
from ms4_train.weights.reading import loading

def high_water():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10

loading.CHUNK_BYTES = 1 << 20
small, large, dequantise = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
loading.load_model(small, dtype=torch.float32, dequantise=dequantise)  # imports, thread pools
if sys.argv[4] == "True":
    kept, read_piece = [], loading.Checkpoint.read_piece
    loading.Checkpoint.read_piece = lambda *arguments: kept.append(read_piece(*arguments)) or kept[-1]
before = high_water()
model = loading.load_model(large, dtype=torch.float32, dequantise=dequantise)
size = sum(parameter.nbytes for parameter in model.parameters()) + quantised_bytes(model)
print(high_water() - before, size)
"""


LARGE = layouts.Tiny(hidden_size=512, moe_intermediate_size=512, n_routed_experts=32, vocab_size=4096)


@pytest.mark.parametrize(
    ("layout", "dequantise", "leak"),
    [
        ("hf", True, False),
        ("native-fp8", True, False),
        ("native-fp8", True, True),
        pytest.param("native-fp8", False, False, marks=pytest.mark.slow),
        pytest.param("nvfp4", False, False, marks=pytest.mark.slow),
    ],
)
def test_peak_memory_is_the_model_and_a_little(tmp_path, layout, dequantise, leak):
    """In a process of its own: the high-water mark of resident memory, of which the files' cached pages are no part.

    Control: with every chunk kept (``leak``) the mark is far above the bound.
    """
    make, _ = MAKERS[layout]
    make(tmp_path / "small")
    make(tmp_path / "large", tiny=LARGE, vision=False)
    command = [sys.executable, "-c", PEAK, tmp_path / "small", tmp_path / "large", str(dequantise), str(leak)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    grown, size = map(int, result.stdout.split())
    assert size > 40 << 20
    # Two chunks of 1 MiB as stored and as wanted for each of two to four threads, and what the allocator keeps of those freed.
    assert (grown > size + (24 << 20)) == leak, (grown, size)
