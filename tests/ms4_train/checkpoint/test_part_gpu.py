"""The copy of state that lies on a GPU. ``make test-gpu`` runs it; elsewhere it is left out, saying so."""

import pytest
import torch
from support.run_state import SmallModel, train_small

from ms4_train.checkpoint.part import HeldPart, write_part
from ms4_train.config.schema import TrainingSection
from ms4_train.parallel import Mesh
from ms4_train.parallel.local import LocalEngine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_the_copy_is_whole_when_it_returns():
    """Taken while earlier work is still queued, and compared after the parameters were overwritten."""
    device = torch.device("cuda")
    torch.set_default_device(device)
    try:
        engine = LocalEngine(SmallModel(width=1 << 16).to(device), Mesh(device=device), training=TrainingSection(learning_rate=0.05))
        train_small(engine, 2)
        expected = {(piece.name, kind): tensor.cpu() for piece in engine.export_state() for kind, tensor in piece.tensors.items()}
        busy = torch.randn(4096, 4096)
        for _ in range(50):
            busy = busy @ busy.clamp(-1, 1)
        part = HeldPart.copy_of(engine)
        for piece in engine.export_state():
            for tensor in piece.tensors.values():
                tensor.zero_()
    finally:
        torch.set_default_device(None)
    for piece in part.pieces:
        for kind, tensor in piece.tensors.items():
            assert tensor.is_pinned()
            assert torch.equal(tensor, expected[piece.name, kind]), (piece.name, kind)


def test_live_state_is_brought_to_the_host_file_by_file(tmp_path):
    """The same bytes as from a copy, and no page-locked memory is asked for."""
    device = torch.device("cuda")
    torch.set_default_device(device)
    try:
        engine = LocalEngine(SmallModel(width=1 << 16).to(device), Mesh(device=device), training=TrainingSection(learning_rate=0.05))
        train_small(engine, 2)
    finally:
        torch.set_default_device(None)
    before = torch.cuda.host_memory_stats()["num_host_alloc"]
    folders = tmp_path / "live", tmp_path / "copied"
    for folder in folders:
        folder.mkdir()
    live = write_part(folders[0], HeldPart.live_in(engine), shard_bytes=1)
    assert torch.cuda.host_memory_stats()["num_host_alloc"] == before
    copied = write_part(folders[1], HeldPart.copy_of(engine), shard_bytes=1)
    assert torch.cuda.host_memory_stats()["num_host_alloc"] > before
    tensors = [name for name in live if name.endswith(".safetensors")]
    assert len(tensors) == 3
    assert all(live[name] == copied[name] for name in tensors)
