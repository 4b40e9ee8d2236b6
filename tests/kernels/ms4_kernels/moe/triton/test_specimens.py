"""The list of shipped forms: complete, of this launcher, and each able to be told to the compiler."""

from __future__ import annotations

import pytest
import torch
from support.triton_interpreter import interpreted

from ms4_kernels.moe.triton import launch, tiles
from ms4_kernels.moe.triton.operands import Stack
from ms4_kernels.moe.triton.specimens import specimens

ALL = specimens()


def test_every_argument_of_a_kernel_is_told_once():
    for specimen in ALL:
        assert not specimen.arguments.keys() & specimen.constants.keys()
        assert specimen.arguments.keys() | specimen.constants.keys() == set(specimen.kernel.arg_names), specimen.name


@pytest.mark.parametrize("kind", ["dense", "described", "fp8", "nvfp4"])
@pytest.mark.parametrize(
    ("name", "chooser"), [("up", tiles.up_tile), ("down", tiles.grouped_tile), ("dx", tiles.grouped_tile), ("dh", tiles.dh_tile)]
)
def test_every_tile_that_the_launcher_can_choose_is_listed(name, chooser, kind):
    suffix = "" if kind == "dense" else f" {kind}"
    chosen = {chooser(rows, torch.bfloat16, "dense" if kind == "described" else kind) for rows in range(1, 3000)}
    listed = {
        (s.constants["BLOCK_M"], s.constants["BLOCK_N"], s.constants["BLOCK_K"], s.num_warps, s.num_stages, s.constants["SWAP"])
        for s in ALL
        if s.name == name + suffix
    }
    assert listed == {(t.block_m, t.block_n, t.block_k, t.num_warps, t.num_stages, t.swap) for t in chosen}


@pytest.mark.parametrize("kind", ["dense", "fp8", "nvfp4"])
@pytest.mark.parametrize(
    ("name", "chooser"), [("up", tiles.up_tile), ("down", tiles.grouped_tile), ("dx", tiles.grouped_tile), ("dh", tiles.dh_tile)]
)
@pytest.mark.parametrize("rank", [0, 16, 128])
def test_every_tile_of_fp32_is_listed_with_every_rank(name, chooser, kind, rank):
    chosen = {chooser(rows, torch.float32, kind) for rows in range(1, 3000)}
    wanted = " ".join(["fp32", name] + [kind] * (kind != "dense") + [f"r{rank}"] * (rank > 0))
    listed = {(s.constants["BLOCK_M"], s.constants["BLOCK_N"], s.constants["BLOCK_K"], s.num_warps) for s in ALL if s.name == wanted}
    assert listed == {(t.block_m, t.block_n, t.block_k, t.num_warps) for t in chosen}


def test_forms_that_differ_in_little_are_listed_too():
    up = [s.constants for s in ALL if s.name.split()[0] == "up"]
    assert {constants["SLOTS"] for constants in up} == {1, 3}
    assert {constants["RANK"] for constants in up} == {0, 16, 32, 64, 128}
    assert {constants["SAVE_H"] for constants in up} == {True, False}
    assert {(constants["EVEN_N"], constants["EVEN_K"]) for constants in up} == {(True, True), (False, False)}


def test_products_claim_the_tensor_cores_and_no_two_are_the_same():
    fp32 = {s.name for s in ALL if "bf16" not in "".join(s.arguments.values())}
    assert {s.name for s in ALL if not s.is_gemm} == {"combine"} | fp32
    assert all(s.constants.get("PRECISION", "ieee") == "ieee" for s in ALL if s.name in fp32)
    forms = [(s.name, id(s.kernel), str(s.arguments), str(s.constants), s.num_warps, s.num_stages) for s in ALL]
    assert len(set(forms)) == len(forms)


def test_launches_name_the_arguments_of_the_listed_forms(ragged):
    with interpreted() as launches:
        launch.grouped(torch.randn(94, 64), Stack.of(torch.randn(5, 40, 64)), ragged, k_inner=True)
    (record,) = (record for record in launches if record.kernel == "grouped_kernel")
    down = next(s for s in ALL if s.name == "down")
    assert record.kernel == down.kernel.__name__
    assert record.arguments.keys() == {name for name, kind in down.arguments.items() if kind.startswith("*")}
