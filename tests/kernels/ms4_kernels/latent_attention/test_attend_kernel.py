"""The attention kernel in the interpreter: errors beside torch's, splits, invariance, bytes, planted bugs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from support.latent_rows import latent_case, worse_than_torch
from support.mutations import plant
from support.triton_interpreter import OutOfBoundsError, RaceError, interpreted

from ms4_kernels.latent_attention import LatentPlan, attend_kernel, latent_attention, launch

FP8 = torch.float8_e4m3fn
TYPES = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "bf16-fp8": (torch.bfloat16, FP8),
    "fp32-fp8": (torch.float32, FP8),
    "fp16-bf16": (torch.float16, torch.bfloat16),
}
BATCHES = {"decode": ([0, 30, 31, 32, 150], [1] * 5), "chunks": ([0, 60], [2, 5])}
SIZES = {"tiny": (3, 20, 4), "even": (8, 32, 16), "release": (32, 256, 64)}
"""Heads, latent, rotary."""


@pytest.fixture(autouse=True)
def _short_splits(monkeypatch):
    """Contexts of a few hundred positions are worth cutting here."""
    monkeypatch.setattr(launch, "LEAST_SPLIT", 16)


def attend(case, num_splits=None):
    with interpreted() as launches:
        found_thc = latent_attention(
            case.query_thm, case.pool_nsm, case.plan, scale=case.scale, latent_rank=case.latent_rank, num_splits=num_splits
        )
    assert launches[0].kernel == "attend_kernel"
    return found_thc, launches


def holds(case, num_splits=None) -> bool:
    return not worse_than_torch(attend(case, num_splits)[0], case)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("num_splits", [None, 1, 3])
def test_error_at_most_twice_that_of_torch(types, batch, num_splits):
    """Unwritten places of the pool hold NaN, and tables end in blocks that do not exist."""
    dtype, pool_dtype = TYPES[types]
    assert holds(latent_case(*BATCHES[batch], page=32, dtype=dtype, pool_dtype=pool_dtype), num_splits)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", [16, 64])
def test_sizes(size, page):
    heads, latent, rotary = SIZES[size]
    for dtype in (torch.float32, torch.bfloat16):
        assert holds(latent_case([0, 70], [1, 1], page=page, heads=heads, latent=latent, rotary=rotary, dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("page", [16, 32, 64])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_type_and_page(types, page, size):
    (dtype, pool_dtype), (heads, latent, rotary) = TYPES[types], SIZES[size]
    for starts, lengths in BATCHES.values():
        for num_splits in (None, 1, 2, 5):
            sizes = {"page": page, "heads": heads, "latent": latent, "rotary": rotary}
            assert holds(latent_case(starts, lengths, dtype=dtype, pool_dtype=pool_dtype, **sizes), num_splits)


def test_padding_gives_zeros():
    for num_splits in (1, 3):
        case = latent_case([31, 6, 40], [1, 1, 1])
        padded = case._replace(plan=LatentPlan.decode(case.plan.tables_bj, torch.tensor([31, -1, 40])))
        found, whole = attend(padded, num_splits)[0], attend(case, num_splits)[0]
        assert not found[1].any()
        assert torch.equal(found[[0, 2]], whole[[0, 2]])


@pytest.mark.parametrize("num_splits", [1, 4])
def test_with_a_fixed_number_of_splits_a_token_stands_alone(num_splits):
    """To the bit: alone or among others, decoded or within a chunk, whatever the tables could hold; else the order follows the batch."""
    case = latent_case([70, 0, 33], [4, 1, 1], dtype=torch.bfloat16, spare=9)
    together, free = attend(case, num_splits)[0], attend(case)[0]
    for token, position in enumerate(range(70, 74)):
        alone = case._replace(
            query_thm=case.query_thm[token : token + 1], plan=LatentPlan.decode(case.plan.tables_bj[:1, :5], torch.tensor([position]))
        )
        assert torch.equal(attend(alone, num_splits)[0][0], together[token])
    assert num_splits == 4 or not torch.equal(free, together)  # control


def test_each_latent_is_read_once_for_all_heads():
    case = latent_case([63, 127], [1, 1], heads=8, dtype=torch.bfloat16)
    found = attend(case, 1)[1][0].arguments["pool_ptr"]
    assert found.read_bytes == found.unique_read_bytes == (64 + 128) * 24 * 2


def test_what_is_not_a_number_shows():
    case = latent_case([40, 5], [1, 1])
    case.query_thm[0, 1, 3] = torch.nan
    for num_splits in (1, 2):
        found = attend(case, num_splits)[0]
        assert found[0, 1].isnan().all()
        assert found[1].isfinite().all()


PLANTED = {
    "positions past the end count": ("tl.where(is_known_s[:, None], score_sr, -float(\"inf\"))", "score_sr", None),
    "the rotary part is forgotten": ("tl.trans(query_rp), score_sr, input", "tl.trans(query_rp) * 0.0, score_sr, input", None),
    "the old sum is not rescaled": ("sum_r = sum_r * shrink_r + ", "sum_r = sum_r + ", None),
    "the old mixture is not rescaled": ("mixed_cr *= shrink_r[None, :]", "mixed_cr *= 1.0", None),
    "the token does not see itself": ("seen = tl.load(position_ptr + token) + 1", "seen = tl.load(position_ptr + token)", None),
    "another sequence's table": ("tl.load(sequence_ptr + token).to(tl.int64) * table_width", "token.to(tl.int64) * table_width",
                                OutOfBoundsError),
    "offsets within a block are lost": ("(block_s * PAGE + place_s % PAGE)", "(block_s * PAGE)", None),
    "blocks past the end are looked up": ("place_s // PAGE, mask=is_known_s, other=0)", "place_s // PAGE)", OutOfBoundsError),
    "unknown places are read": ("mask=is_known_s[:, None] & (lane_x < WIDTH)[None, :], other=0)", "mask=(lane_x < WIDTH)[None, :])", None),
    "padding heads are stored": ("mask=is_row_r[None, :] & (c_c < LATENT)[:, None]", "mask=(c_c < LATENT)[:, None]",
                                 (OutOfBoundsError, RaceError)),
    "all splits write one part": ("out_ptr += split.to(tl.int64) * num_rows * LATENT", "out_ptr += 0", RaceError),
}  # fmt: skip
"""What is planted -> (text of the kernel, what replaces it, what the sanitizer raises; None where values are wrong)."""


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_caught(monkeypatch, tmp_path, bug):
    old, new, raised = PLANTED[bug]
    case = latent_case([20, 170], [2, 1], heads=12, latent=20, rotary=4, spare=0, dtype=torch.bfloat16)
    assert holds(case, 2)
    plant(monkeypatch, tmp_path, attend_kernel, old, new)
    if raised is None:
        assert not holds(case, 2)
    else:
        with pytest.raises(raised):
            holds(case, 2)
