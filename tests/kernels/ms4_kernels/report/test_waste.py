"""Padding against the definition row by row, and against the published figures for uniform routing over 128 experts, top-4."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ms4_kernels.report.waste import SKEWS, TOKENS, draw_counts, padded_ratio, simulate


def test_padded_ratio_is_what_a_loop_over_tiles_counts():
    counts_e = np.array([0, 1, 15, 16, 17, 100])
    tiles = sum(1 for count in counts_e for _ in range(0, int(count), 16))
    assert padded_ratio(counts_e, 16) == 16 * tiles / 149
    assert padded_ratio(counts_e, 1) == 1


def test_draws_add_up_and_skew_shows():
    generator = np.random.default_rng(1)
    uniform, skewed = (draw_counts(32768, 4, 128, sigma, generator) for sigma in SKEWS.values())
    assert uniform.sum() == skewed.sum() == 32768 * 4
    # Poisson-like: 1024 +- 32 a bin; lognormal odds of sigma 1 have a relative spread of sqrt(e - 1) = 1.3.
    assert uniform.std() / uniform.mean() < 0.05
    assert skewed.std() / skewed.mean() > 0.7


@pytest.mark.parametrize(
    ("tokens", "block", "ratio"),
    [(512, 128, 8.0), (2048, 128, 2.0), (4096, 128, 1.50), (8192, 128, 1.25), (32768, 128, 1.06), (512, 64, 4.0), (512, 16, 1.45)],
)
def test_uniform_routing_pads_as_published_and_as_the_binomial_distribution_says(tokens, block, ratio):
    """Worst at 4096: half the experts need a second tile, so that one routing of 128 experts spreads by 0.5 / sqrt(128) = 0.044 of 1.48.

    The published figures are of single routings, hence 3%; the mean of 20 lies within 3 times 0.044 / sqrt(20), 2%, of the exact mean.
    """
    (found, _) = simulate({"kernel": lambda rows: block}, tokens=[tokens])
    assert found.skew == "uniform"
    assert found.ratio == pytest.approx(ratio, rel=0.03)
    assert found.ratio == pytest.approx(expected_ratio(4 * tokens, block), rel=0.02)
    assert found.worst >= found.ratio


def expected_ratio(rows: int, block: int, num_experts: int = 128) -> float:
    """The mean of an expert's padded rows over its binomial distribution, divided by its mean rows."""
    log_p, log_q = math.log(1 / num_experts), math.log1p(-1 / num_experts)
    total = 0.0
    for count in range(1, rows + 1):
        log_choose = math.lgamma(rows + 1) - math.lgamma(count + 1) - math.lgamma(rows - count + 1)
        total += math.exp(log_choose + count * log_p + (rows - count) * log_q) * math.ceil(count / block) * block
    return total * num_experts / rows


def test_the_chooser_is_asked_with_rows_per_expert():
    asked = []
    found = simulate({"kernel": lambda rows: asked.append(rows) or 16})
    assert asked == [count * 4 / 128 for count in TOKENS]
    assert [row.tokens for row in found] == [count for count in TOKENS for _ in SKEWS]
    assert found == simulate({"kernel": lambda rows: 16})
