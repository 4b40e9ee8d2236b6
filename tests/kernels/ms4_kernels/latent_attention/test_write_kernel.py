"""Writing latents: every rounding of E4M3 as torch has it, slots, and what the sanitizer sees."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from support.mutations import plant
from support.triton_interpreter import OutOfBoundsError, RaceError, interpreted

from ms4_kernels.latent_attention import cpu, write_kernel, write_latents

FP8 = torch.float8_e4m3fn


def edges() -> torch.Tensor:
    """Every E4M3 number, the halfway points between neighbours, and the fp32 numbers beside all of these; then what is out of range."""
    codes = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    places = torch.cat((codes, (codes[1:] + codes[:-1]) / 2))
    beside = torch.cat([places, *(torch.nextafter(places, torch.full_like(places, side)) for side in (0.0, 1e9))])
    rest = torch.tensor([448.1, 463.9, 464.0, 465.0, 1e30, float("inf"), float("nan"), 1e-40, 1e-12])
    both = torch.cat((beside, rest))
    return torch.cat((both, -both))


def codes_of(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By the kernel and by torch."""
    pools = [torch.zeros(1, 1, values.numel(), dtype=FP8) for _ in range(2)]
    slot_t = torch.zeros(1, dtype=torch.int64)
    with interpreted():
        write_latents(pools[0], values[None], slot_t)
    cpu.write_latents_cpu(pools[1], values[None], slot_t)
    return pools[0].view(torch.uint8), pools[1].view(torch.uint8)


def test_e4m3_is_torchs():
    found, wanted = codes_of(edges())
    assert torch.equal(found & 0x7F, wanted & 0x7F)
    is_number = (wanted & 0x7F) != 0x7F  # the sign of NaN is nobody's business
    assert torch.equal(found[is_number], wanted[is_number])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0x7FFFF + ((size_bits >> 20) & 1)", "0x80000"),
        ("tl.minimum(tl.abs(value), 448.0)", "tl.abs(value)"),
        ("size < 0.015625", "size < 0.0"),
    ],
)
def test_planted_bugs_of_rounding_are_caught(monkeypatch, tmp_path, old, new):
    plant(monkeypatch, tmp_path, write_kernel, old, new)
    found, wanted = codes_of(edges())
    assert not torch.equal(found & 0x7F, wanted & 0x7F)


@pytest.mark.parametrize(("latent", "pool"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, FP8)])
def test_writes_what_torch_writes(latent, pool):
    latent_tm = torch.randn(5, 40).to(latent)[:, :20]  # rows that lie apart
    slot_t = torch.tensor([17, -1, 63, 0, 18])
    pools = [torch.zeros(4, 16, 20, dtype=pool) for _ in range(2)]
    with interpreted():
        write_latents(pools[0], latent_tm, slot_t)
        write_latents(pools[0], latent_tm[:0], slot_t[:0])
    cpu.write_latents_cpu(pools[1], latent_tm, slot_t)
    assert torch.equal(pools[0].float(), pools[1].float())


def test_the_sanitizer_sees_slots_that_are_wrong():
    pool_nsm, latent_tm = torch.zeros(2, 16, 20), torch.randn(2, 20)
    with interpreted(), pytest.raises(OutOfBoundsError):
        write_latents(pool_nsm, latent_tm, torch.tensor([0, 32]))
    with interpreted(), pytest.raises(RaceError):
        write_latents(pool_nsm, latent_tm, torch.tensor([3, 3]))
