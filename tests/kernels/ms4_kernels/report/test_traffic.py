"""The formulas against the totals worked out for one layer of the release, and against each other."""

from __future__ import annotations

import pytest

from ms4_kernels.report.traffic import Sizes, backward, forward, lora_backward, lora_forward, weight_gradients


def by_name(operations):
    return {operation.name: operation for operation in operations}


@pytest.mark.parametrize(("tokens", "ms"), [(2048, 2.01), (8192, 2.28)])
def test_the_forward_minimum_is_the_published_one(tokens, ms):
    """Where all is bound by memory the least time is bytes / 3.35 TB/s; the published milliseconds have three digits."""
    least = sum(operation.minimum for operation in forward(Sizes(tokens)))
    assert least / 3.35e12 * 1e3 == pytest.approx(ms, abs=0.006)


def test_flops_are_six_r_d_n_each_way_and_lora_adds_under_a_hundredth():
    sizes = Sizes(2048, rank=16)
    six = 6 * sizes.rows * sizes.hidden * sizes.width
    for part in (forward, backward, weight_gradients):
        assert sum(operation.flops for operation in part(sizes)) == six
    # 0.91% is the published share of rank 16 in the forward pass.
    assert sum(operation.flops for operation in lora_forward(sizes)) / six == pytest.approx(0.0091, abs=0.0001)
    # Twice the forward's for two gradients of each product, and two of the forward's four products once more.
    again = sum(operation.flops for operation in lora_forward(sizes) if not operation.name.startswith("tail"))
    assert sum(operation.flops for operation in lora_backward(sizes)) == again + 2 * sum(one.flops for one in lora_forward(sizes))


def test_what_is_moved_besides_is_small_at_the_sizes_of_the_release():
    for tokens in (512, 2048, 32768):
        for part in (forward, backward, lora_forward, lora_backward, weight_gradients):
            for operation in part(Sizes(tokens, rank=16)):
                if operation.name not in ("ds", "combine dx"):
                    assert operation.minimum <= operation.moved <= 1.01 * operation.minimum, operation


def test_compulsory_bytes_by_operation():
    """The formulas of the issue's reference, with T = 8, d = 4, n = 2, E = 2, K = 2, R = 16, in bf16."""
    sizes = Sizes(8, hidden=4, width=2, experts=2, top_k=2)
    t, d, n, e, r = 8, 4, 2, 2, 16
    up, down, combine = forward(sizes)
    assert up.minimum == 2 * t * d + 4 * e * d * n + 6 * r * n
    assert down.minimum == 2 * r * n + 2 * e * d * n + 2 * r * d
    assert combine.minimum == 2 * r * d + 2 * t * d
    dh, _, dx, _ = backward(sizes, saves_a=True)
    assert dh.minimum == 2 * t * d + 2 * e * d * n + 10 * r * n
    assert dx.minimum == 4 * r * n + 4 * e * d * n + 2 * r * d
    dw1, dw2 = weight_gradients(sizes)
    assert dw2.minimum == 2 * r * n + 2 * t * d + 2 * e * d * n
    assert dw1.minimum == 2 * t * d + 4 * r * n + 4 * e * d * n


def test_options_leave_out_what_is_not_written():
    sizes = Sizes(64)
    rows_n = 2 * sizes.rows * sizes.width
    assert forward(sizes)[0].minimum - forward(sizes, saves_h=False)[0].minimum == 2 * rows_n
    assert backward(sizes, saves_a=True)[0].minimum - backward(sizes)[0].minimum == rows_n
    quantised = forward(Sizes(64, weight=0.5625))
    assert quantised[0].loads["W1"] == 0.5625 * 128 * 4096 * 4096
    assert quantised[0].stores == forward(sizes)[0].stores


def test_issued_bytes_are_those_of_a_loop_over_tiles():
    sizes = Sizes(1024, hidden=256, width=128, experts=4, top_k=2, block_rows=64, block_columns=32)
    (down,) = [operation for operation in forward(sizes) if operation.name == "down"]
    total = sum((64 + 32) * 128 * 2 for _ in range(sizes.tiles) for _ in range(0, 256, 32))
    assert down.issued(sizes) == total
    assert by_name(forward(sizes))["combine"].issued(sizes) == 0
