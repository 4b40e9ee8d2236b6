"""One rank's files: what safetensors reads back, how much memory they cost, and what a writer lets go."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.run_state import small_engine

from ms4_train.checkpoint import part as part_module
from ms4_train.checkpoint.manifest import FileSum, verify_files
from ms4_train.checkpoint.part import HeldPart, write_part
from ms4_train.errors import StorageError
from ms4_train.parallel import StatePiece


def held(sizes, rank=3):
    pieces = [
        StatePiece(f"p.{index}", (size + 7,), 5, {kind: torch.randn(size) for kind in ("weight", "exp_avg", "exp_avg_sq")}, 4)
        for index, size in enumerate(sizes)
    ]
    return HeldPart(rank, pieces, {"torch": "00"})


def make(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize("sizes", [[1], [5, 3, 1000], [7] * 20])
def test_safetensors_reads_back_what_was_written(tmp_path, sizes):
    part = held(sizes)
    expected = {f"{kind}:{piece.name}@5": tensor.clone() for piece in part.pieces for kind, tensor in piece.tensors.items()}
    sums = write_part(tmp_path, part)
    verify_files(tmp_path, sums)
    found = load_file(tmp_path / "rank-00003-000.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) and found[key].dtype == torch.float32 for key, tensor in expected.items())
    listed = json.loads((tmp_path / "rank-00003.json").read_text())
    assert listed["pieces"][0] == {
        "name": "p.0", "shape": [sizes[0] + 7], "start": 5, "length": sizes[0], "file": "rank-00003-000.safetensors", "step": 4
    }  # fmt: skip
    assert listed["random"] == {"torch": "00"}


def test_files_are_closed_at_their_size_and_their_memory_is_let_go(tmp_path):
    part = held([100] * 5)
    sums = write_part(tmp_path, part, shard_bytes=2 * 100 * 12)
    assert sorted(sums) == [*(f"rank-00003-{number:03d}.safetensors" for number in range(3)), "rank-00003.json"]
    assert part.pieces == []
    with safe_open(tmp_path / "rank-00003-002.safetensors", framework="pt") as handle:
        assert sorted(handle.keys()) == ["exp_avg:p.4@5", "exp_avg_sq:p.4@5", "weight:p.4@5"]


def test_a_rank_that_holds_nothing_writes_its_random_state(tmp_path):
    assert list(write_part(tmp_path, held([]))) == ["rank-00003.json"]


def test_no_second_copy_is_made_of_what_is_written(tmp_path):
    """12 MB in one file; Python's own allocations stay below 1 MB. Serialising first, as safetensors' ``save`` does, takes 12 MB."""
    from safetensors.torch import save

    part = held([1 << 20])
    tensors = dict(part.pieces[0].tensors)
    tracemalloc.start()
    write_part(tmp_path, part)
    ours = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    save(tensors)
    theirs = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ours < 1 << 20
    assert theirs > 12 << 20


def test_the_copy_is_a_copy():
    engine = small_engine(steps=1)
    part = HeldPart.copy_of(engine)
    for piece, live in zip(part.pieces, engine.export_state(), strict=True):
        assert replace(piece, tensors={}) == replace(live, tensors={})
        for kind, tensor in piece.tensors.items():
            assert torch.equal(tensor, live.tensors[kind])
            assert tensor.data_ptr() != live.tensors[kind].data_ptr()


def test_live_state_is_written_from_where_it_lies(tmp_path, monkeypatch):
    """The addresses of what is written are those of the engine's tensors; of state of another type, which is converted, they are not."""
    engine, seen = small_engine(steps=1), []
    write = part_module.write_synced

    def watched(path, *parts, **keys):
        seen.extend(np.frombuffer(view, dtype=np.uint8).ctypes.data for view in parts if isinstance(view, memoryview))
        return write(path, *parts, **keys)

    monkeypatch.setattr(part_module, "write_synced", watched)
    live = [tensor.data_ptr() for piece in engine.export_state() for tensor in piece.tensors.values()]
    sums = write_part(tmp_path, HeldPart.live_in(engine))
    assert seen == live
    seen.clear()
    copied = write_part(make(tmp_path / "copied"), HeldPart.copy_of(engine))
    assert not set(seen) & set(live)
    assert sums["rank-00000-000.safetensors"] == copied["rank-00000-000.safetensors"]


def test_state_of_another_type_is_written_as_fp32(tmp_path):
    part = held([6, 4])
    expected = {f"{kind}:{piece.name}@5": tensor.bfloat16() for piece in part.pieces for kind, tensor in piece.tensors.items()}
    part.pieces = [replace(piece, tensors={kind: tensor.bfloat16() for kind, tensor in piece.tensors.items()}) for piece in part.pieces]
    write_part(tmp_path, part)
    found = load_file(tmp_path / "rank-00003-000.safetensors")
    assert found.keys() == expected.keys()
    assert all(found[key].dtype == torch.float32 and torch.equal(found[key], tensor.float()) for key, tensor in expected.items())


def test_a_writer_can_be_stopped_between_chunks(tmp_path):
    seen = []

    def proceed(count):
        seen.append(count)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_part(tmp_path, held([1 << 20]), proceed=proceed)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError):
        write_part(tmp_path / "gone", held([3]))


def test_sums_are_those_of_the_files(tmp_path):
    sums = write_part(tmp_path, held([3]))
    assert all(isinstance(item, FileSum) and item.bytes == (tmp_path / name).stat().st_size for name, item in sums.items())
