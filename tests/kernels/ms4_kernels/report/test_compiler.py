"""Compilation without a GPU: figures against an independent reader of the binary, a cache that cannot go stale, errors that are told."""

from __future__ import annotations

import dataclasses
import re
import subprocess

import pytest

triton = pytest.importorskip("triton")

from support.report_samples import product, sample, specialised  # noqa: E402
from triton import knobs  # noqa: E402

from ms4_kernels.report import compiler  # noqa: E402
from ms4_kernels.report.compiler import GATED, TARGETS, compile_specimen  # noqa: E402

SMALL = sample(product, 64, 64, warps=4)


@pytest.fixture
def binaries(monkeypatch):
    """What the compiler returned, besides what the report made of it."""
    kept = []
    compile_it = triton.compile

    def compile_and_keep(*arguments, **named):
        kept.append(compile_it(*arguments, **named))
        return kept[-1]

    monkeypatch.setattr(triton, "compile", compile_and_keep)
    return kept


@pytest.mark.parametrize("target", GATED)
def test_figures_equal_those_that_cuobjdump_reads_from_the_binary(target, binaries, tmp_path):
    row = compile_specimen(SMALL, target, sass=True)
    (tmp_path / "x.cubin").write_bytes(binaries[0].asm["cubin"])
    command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(tmp_path / "x.cubin")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found is not None
    assert (row.registers, row.stack) == (int(found[1]), int(found[2]))
    assert row.error == ""
    assert row.counts["local_stores"] == row.counts["local_loads"] == 0
    assert row.counts["cp_async"] > 0
    assert row.threads == 128
    # The tiles of one step lie in shared memory once a stage, in bf16; the barriers take a few bytes more.
    assert 0 <= row.shared - 3 * 2 * 64 * 64 * 2 < 1024


def test_loads_are_vectorised_because_of_the_divisibility_that_the_specimen_states():
    """Negative control for ':16': without it, addresses may be odd, and no asynchronous copy of 16 bytes is possible."""
    bare = dataclasses.replace(SMALL, arguments={name: kind.removesuffix(":16") for name, kind in SMALL.arguments.items()})
    assert compile_specimen(SMALL, "sm_90").counts["cp_async"] > 0
    assert compile_specimen(bare, "sm_90").counts["cp_async"] == 0


def test_descriptors_handed_in_become_bulk_copies():
    row = compile_specimen(sample(specialised, 64, 128, warps=4), "sm_90")
    assert row.counts["tma_load"] > 0
    assert row.counts["tma_store"] > 0
    assert row.counts["setmaxnreg"] > 0
    assert row.threads == 384


def test_amd_is_told():
    row = compile_specimen(SMALL, "gfx942")
    assert (row.error, row.programs) == ("", -1)
    assert row.counts["mfma"] > 0
    # Six tiles of 16 KiB in flight are more than the 64 KiB there are.
    assert compile_specimen(sample(product, 64, 64, warps=4, stages=7), "gfx942").programs == 0
    assert set(TARGETS) - set(GATED) == {"gfx942"}


def test_nothing_is_read_from_or_left_in_the_users_cache(tmp_path, monkeypatch, binaries):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert knobs.cache.dir == str(tmp_path)
    compile_specimen(SMALL, "sm_90")
    assert list(tmp_path.iterdir()) == []
    # Negative control: the compiler by itself does leave its work there.
    triton.compile(compiler._source(SMALL), target=TARGETS["sm_90"], options={"num_warps": 4})
    assert list(tmp_path.iterdir())
    assert knobs.cache.dir == str(tmp_path)


def test_what_does_not_compile_says_why():
    row = compile_specimen(sample(product, 64, 48, warps=4), "sm_90")
    assert "power of 2" in row.error
    assert row.spill_stores == -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arguments": {**SMALL.arguments, "z": "i32"}}, "'z'"),
        ({"constants": {"BLOCK_M": 64}}, "BLOCK_K"),
        ({"constants": {**SMALL.constants, "K": 64}}, "twice"),
        ({"arguments": {**SMALL.arguments, "K": "i32:8"}}, "only ':16'"),
        ({"kernel": product.fn}, "not a compiled function"),
    ],
)
def test_specimens_that_do_not_fit_their_kernel(change, message):
    with pytest.raises(ValueError, match=message):
        compile_specimen(dataclasses.replace(SMALL, **change), "sm_90")
