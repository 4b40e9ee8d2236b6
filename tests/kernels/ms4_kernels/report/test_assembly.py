"""Counts and figures are read from text in the words of ptxas 12.8 and 13.1, nvdisasm and LLVM's AMD backend."""

from __future__ import annotations

import pytest

from ms4_kernels.report.assembly import amd_counts, amd_resources, ptx_counts, ptx_threads, ptxas_resources, sass_counts

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient register resources
ptxas info    : Compiling entry function 'pair' for 'sm_90a'
ptxas info    : Function properties for pair
    1192 bytes stack frame, 1188 bytes spill stores, 932 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1192 bytes cumulative stack size
"""
PTX = """.reqntid 384
wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f1}, %rd1, %rd2, 1;
wgmma.wait_group.sync.aligned 0;
tcgen05.mma.cta_group::1.kind::f16 [%r1], %rd1, %rd2, %r3, %p1;
tcgen05.commit.cta_group::1.mbarrier::arrive::one.b64 [%r1];
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f1};
cp.async.cg.shared.global [ %r1 ], [ %rd1 ], 16, 16;
cp.async.commit_group;
cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];
cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r2, %r3}], [%r1];
setmaxnreg.dec.sync.aligned.u32 24;
atom.global.gpu.acq_rel.add.f32 %f1, [%rd1], %f2;
red.relaxed.gpu.global.add.f32 [%rd1], %f2;
"""
AMD = "v_mfma_f32_32x32x16_bf16 a[0:15]\nglobal_atomic_add_f32 v1\n"
AMD_METADATA = "    .private_segment_fixed_size: 320\n    .sgpr_spill_count: 1\n    .vgpr_count:     128\n    .vgpr_spill_count: 319\n"


def test_log_of_ptxas():
    found = ptxas_resources(LOG)
    assert (found.registers, found.stack, found.spill_stores, found.spill_loads) == (255, 1192, 1188, 932)
    assert found.serialised == "insufficient register resources"
    assert ptxas_resources(LOG.replace("serialized", "fine")).serialised == ""


@pytest.mark.parametrize("word", ["registers", "stack frame", "spill stores", "spill loads"])
def test_a_missing_figure_is_never_zero(word):
    with pytest.raises(ValueError, match=word.split()[0]):
        ptxas_resources(LOG.replace(word, "?"))
    with pytest.raises(ValueError, match="threads"):
        ptx_threads("")
    with pytest.raises(ValueError, match="vector registers"):
        amd_resources("")


def test_instructions():
    assert set(ptx_counts("").values()) == {0}
    assert ptx_counts(PTX) == {
        "wgmma": 1,
        "tcgen05": 1,
        "mma_sync": 1,
        "cp_async": 1,
        "tma_load": 1,
        "tma_store": 1,
        "setmaxnreg": 1,
        "atomics": 2,
    }
    assert ptx_threads(PTX) == 384
    assert sass_counts("STL.64 [R1], R2 ;\nSTL [R1+0x8], R2 ;\nLDL R2, [R1] ;\nSTG.E [R2], R3 ;") == {"local_stores": 2, "local_loads": 1}


def test_amd():
    assert amd_counts(AMD) == {"mfma": 1, "atomics": 1}
    found = amd_resources(AMD_METADATA)
    assert (found.registers, found.stack, found.spill_stores) == (128, 320, 4 * 320)
