"""Ranks that read shares of a model: together they hold what one reader of everything does, and read every byte once, but for rows at the
seams. Peak memory: ``tests/ms4_train/parallel/test_zero3_memory.py``.
"""

import contextlib

import numpy as np
import pytest
import torch
from support import layouts

from ms4_train.model.quantised import quantised_modules
from ms4_train.weights.reading import loading
from ms4_train.weights.reading.checkpoint import open_checkpoint
from ms4_train.weights.reading.loading import load_model
from ms4_train.weights.reading.shares import Sharing, share_of
from ms4_train.weights.reading.stored_files import OpenFiles

MAKERS = {
    "hf": layouts.hf_folder,
    "native": layouts.native_folder,
    "hf-fp8": layouts.hf_fp8_folder,
    "native-fp8": layouts.native_fp8_folder,
    "nvfp4": layouts.nvfp4_folder,
}
FOLDERS = [("hf", 1), ("hf", 3), ("native", 3), ("hf-fp8", 1), ("native-fp8", 3), ("nvfp4", 1)]
"""Layout, and number of files."""
EXPERTS = 8
MESHES = {
    "3": [(None, Sharing(rank, 3, rank, 3)) for rank in range(3)],
    "2x2": [((4 * (rank % 2), 4 * (rank % 2) + 4), Sharing(rank, 4, rank // 2, 2)) for rank in range(4)],
}
"""Ranks -> (range of experts, sharing) of each; of the four ranks, two share out the experts, and two hold the same."""
CASES = [
    pytest.param(
        folder, mesh, marks=[pytest.mark.slow] if mesh == "2x2" and folder != ("hf", 1) else [], id=f"{'-'.join(map(str, folder))}-{mesh}"
    )
    for folder in FOLDERS
    for mesh in MESHES
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Gives a folder of FOLDERS, written when it is first asked for."""
    found = {}

    def folder(layout, shards):
        if (layout, shards) not in found:
            found[layout, shards] = tmp_path_factory.mktemp(layout)
            MAKERS[layout](found[layout, shards], shards=shards)
        return found[layout, shards]

    return folder


@contextlib.contextmanager
def recorded(monkeypatch):
    """{file: [(offset, bytes)]} of all that is read into tensors."""
    reads, read = {}, OpenFiles.read_into

    def recording(self, file, offset, out, *, key=None):
        reads.setdefault(file, []).append((offset, out.numel() * out.element_size()))
        read(self, file, offset, out, key=key)

    with monkeypatch.context() as patch:
        patch.setattr(OpenFiles, "read_into", recording)
        yield reads


def joined(models, expert_ranges):
    """Whole parameters out of every rank's shares."""
    whole = {}
    for name, parameter in models[0].named_parameters():
        shares = [share_of(model.get_parameter(name)) for model in models]
        if parameter.ndim == 3:
            holders = {}  # the ranks with equal experts
            for share, experts in zip(shares, expert_ranges, strict=True):
                holders.setdefault(experts, []).append(share)
            parts = [torch.cat([share.values for share in held]) for _, held in sorted(holders.items(), key=lambda item: item[0] or (0,))]
        else:
            parts = [torch.cat([share.values for share in shares])]
        size = parameter.numel()
        shape = (len(parts) * parameter.shape[0], *parameter.shape[1:])
        whole[name] = torch.cat([part[:size] for part in parts]).view(shape)
        assert all(not part[size:].any() for part in parts), "padding is zero"
    return whole


@pytest.mark.parametrize(("folder", "mesh"), CASES)
def test_shares_of_all_ranks_are_the_model_and_every_byte_is_read_once(made, monkeypatch, folder, mesh):
    """The whole reader is tested against the layouts' definitions (test_loading_layouts). Chunks of a few rows, so that there are many."""
    monkeypatch.setattr(loading, "CHUNK_BYTES", 2048)
    folder, dtype = made(*folder), torch.bfloat16 if mesh == "3" else torch.float32
    with recorded(monkeypatch) as reads_of_whole:
        expected = dict(load_model(folder, dtype=dtype).named_parameters())
    with recorded(monkeypatch) as reads:
        models = [load_model(folder, dtype=dtype, expert_range=experts, share=sharing) for experts, sharing in MESHES[mesh]]
    for name, parameter in models[0].named_parameters():
        assert bool(parameter.isnan().all()), name
        assert (parameter.dtype, parameter.requires_grad) == (dtype, True)
    found = joined(models, [experts for experts, _ in MESHES[mesh]])
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    check_reads(open_checkpoint(folder), reads, reads_of_whole, len(models))


def check_reads(checkpoint, reads, reads_of_whole, ranks):
    """Every byte is read at least once; the second time only in rows at the seams of shares, in heads of permuted matrices."""
    kinds, heads = checkpoint.table.tensors(), checkpoint.config.vision.num_attention_heads
    permuted = {checkpoint.place(piece).values for piece in checkpoint.pieces().values() if checkpoint.place(piece).is_permuted}
    read, stored = 0, 0
    for name, item in checkpoint.stored.items():
        if kinds[name].kind == "scalar":
            continue
        assert (times_read(reads_of_whole[item.file], item) == 1).all(), name
        times = times_read(reads[item.file], item)
        assert times.min() >= 1, name
        is_stack = len(item.info.shape) == 3
        height = item.info.shape[0] // heads if name in permuted else 1
        seam = height * item.num_bytes // (item.info.shape[0] * (item.info.shape[1] if is_stack else 1))
        seams = (ranks - 1) * (2 if is_stack else 1)  # gate and up of one expert
        assert times.sum() - len(times) <= seams * seam, name
        read, stored = read + int(times.sum()), stored + len(times)
    assert stored <= read < 1.1 * stored, "a rank that reads everything, experts or not, would make it 2 or more"


def times_read(reads, item):
    """How often each byte of a stored tensor was read."""
    times = np.zeros(item.num_bytes, dtype=np.int64)
    for offset, count in reads:
        times[max(offset - item.info.start, 0) : max(offset + count - item.info.start, 0)] += 1
    return times


@pytest.mark.parametrize("layout", ["hf-fp8", "nvfp4"])
def test_codes_stay_whole(made, layout):
    """Weights that stay quantised are buffers, which ZeRO does not spread; everything else is shared out."""
    folder = made(layout, 1)
    whole = load_model(folder, dtype=torch.bfloat16, dequantise=False)
    part = load_model(folder, dtype=torch.bfloat16, dequantise=False, share=Sharing(1, 2, 1, 2))
    for (name, module), (_, expected) in zip(quantised_modules(part), quantised_modules(whole), strict=True):
        for mine, theirs in zip(module.value().tensors, expected.value().tensors, strict=True):
            assert torch.equal(mine, theirs), name
    for name, parameter in part.named_parameters():
        share = share_of(parameter)
        assert torch.equal(share.view(share.start, share.stop), whole.get_parameter(name).flatten()[share.start : share.stop]), name


def test_progress_counts_the_bytes_of_the_share(made):
    told = []
    load_model(made("hf", 1), dtype=torch.bfloat16, share=Sharing(0, 4, 0, 4), progress=lambda done, total: told.append((done, total)))
    size = open_checkpoint(made("hf", 1)).num_bytes
    assert told[-1][0] == told[-1][1]
    assert size / 4 <= told[-1][1] < size / 3
