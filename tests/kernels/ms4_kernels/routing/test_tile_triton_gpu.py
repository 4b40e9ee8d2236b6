"""The tile list's kernel on a CUDA device: entry for entry what torch makes of the same ends, without waiting for the device."""

from __future__ import annotations

import pytest
import torch
from support import gpu
from support.gpu import needs_gpu, no_host_wait

from ms4_kernels.routing import tile_list

pytestmark = needs_gpu
COUNTS = {
    "release, even": [1024] * 128,
    "release, ragged": torch.randint(0, 700, (128,), generator=torch.Generator().manual_seed(1)).tolist(),
    "one expert has all": [0, 0, 8191, 0],
    "empty edges": [0, 5, 0, 17, 0],
    "adapters": [3, 0, 1, 65] * 200,
}


@pytest.mark.parametrize("block_rows", [16, 64, 128])
@pytest.mark.parametrize("counts", COUNTS)
def test_equals_torch(counts, block_rows):
    ends_e = torch.tensor(COUNTS[counts]).cumsum(0).to(torch.int32)
    num_rows = int(ends_e[-1])
    there_e = ends_e.to(gpu.DEVICE)
    tile_list(there_e, num_rows, block_rows)  # compiled
    with no_host_wait():
        tiles = tile_list(there_e, num_rows, block_rows)
    for mine, oracle in zip(tiles, tile_list(ends_e, num_rows, block_rows, backend="cpu"), strict=True):
        assert mine.dtype == oracle.dtype
        assert torch.equal(mine.cpu(), oracle)
