"""Run state that one mesh wrote goes on in every other: the same mesh bit by bit, another one with the same losses and the same rows.

Every run takes four packed rows per step, whatever the number of ranks. It is stopped after step 4 on one mesh, and goes on for ten steps
on all of them.
"""

import hashlib
import shutil
import signal
from pathlib import Path

import pytest
from support.distributed import ROOT, run_ranks
from support.resume_runs import losses, rows_of_steps, write_inputs
from support.sft_files import sft_run

from ms4_train.config import to_yaml

pytestmark = pytest.mark.slow
STEPS, STOP = 14, 4
MESHES = {
    "one process": (1, 1, 2),
    "2 ranks, EP 2, ZeRO 1": (2, 2, 1),
    "2 ranks, ZeRO 3": (2, 1, 3),
    "4 ranks, EP 2, ZeRO 2": (4, 2, 2),
    "4 ranks, EP 4, ZeRO 3": (4, 4, 3),
}
"""Ranks, expert-parallel size, ZeRO stage."""
LORA = {"r": 4, "target_modules": ["q_b_proj", "o_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


def run(folder: Path, output: str, mesh: str, kind: str, *, stop: int = 0) -> list[list[str]]:
    """Train on a mesh, and return the rows of each step that it took."""
    ranks, size, stage = MESHES[mesh]
    config = sft_run(
        folder,
        output,
        training={
            "max_steps": STEPS,
            "save_strategy": "steps",
            "save_steps": STEPS,
            "gradient_accumulation_steps": 4 // ranks,
            "train_router": kind == "full",
        },
        parallel={"expert_parallel_size": size, "zero_stage": stage, "timeout_seconds": 120},
        **({"adapter": LORA} if kind == "lora" else {}),
    )
    file, log = folder / f"{output}.yaml", folder / f"{output}.rows"
    file.write_text(to_yaml(config))
    printed = run_ranks(ROOT / "tests" / "reliability" / "resume_worker.py", str(file), str(log), str(stop), ranks=ranks, check=stop == 0)
    if stop:
        assert (folder / output / "checkpoints" / f"step-{stop:06d}").is_dir(), printed[0][-3000:]
        assert f"stopped by {signal.Signals.SIGTERM.name} after step {stop}" in printed[0], printed[0][-3000:]
    paths = [log.with_name(f"{log.name}.{rank}") for rank in range(ranks)]
    rows = rows_of_steps(paths, 4 // ranks)
    for path in paths:
        path.unlink()
    return rows


def values(output: Path) -> dict[int, tuple[float, float]]:
    return {step: (float.fromhex(loss), float.fromhex(norm)) for step, (loss, norm) in losses(output).items()}


def sums_of_tensors(output: Path) -> dict[str, str]:
    """Of the weights and moments of the last state, and of what was exported."""
    files = [*(output / "checkpoints" / f"step-{STEPS:06d}").glob("*.safetensors"), *output.glob("*/*.safetensors")]
    sums = {f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert len({name.partition("/")[0] for name in sums}) == 2, sums  # a state, and a model or an adapter
    return sums


SAVED = [("full", mesh) for mesh in MESHES] + [("lora", "2 ranks, EP 2, ZeRO 1"), ("lora", "4 ranks, EP 4, ZeRO 3")]


@pytest.mark.parametrize(("kind", "saved_on"), SAVED, ids=[f"{kind}, {mesh}" for kind, mesh in SAVED])
def test_every_mesh_goes_on_from_every_other(kind, saved_on, tmp_path):
    """1e-5 allows for the order of sums over ten steps. Row by row: none is lost, none comes twice."""
    write_inputs(tmp_path)
    straight_rows = run(tmp_path, "straight", saved_on, kind)
    straight = values(tmp_path / "straight")
    first = run(tmp_path, "stopped", saved_on, kind, stop=STOP)
    assert losses(tmp_path / "stopped") == {step: value for step, value in losses(tmp_path / "straight").items() if step <= STOP}
    for mesh in MESHES:
        shutil.rmtree(tmp_path / "resumed", ignore_errors=True)
        shutil.copytree(tmp_path / "stopped", tmp_path / "resumed")
        rest = run(tmp_path, "resumed", mesh, kind)
        assert first + rest == straight_rows, mesh
        assert len(straight_rows) == STEPS
        resumed = values(tmp_path / "resumed")
        assert resumed.keys() == straight.keys()
        if mesh == saved_on:
            assert losses(tmp_path / "resumed") == losses(tmp_path / "straight"), mesh
            assert sums_of_tensors(tmp_path / "resumed") == sums_of_tensors(tmp_path / "straight"), mesh
        for step, (loss, norm) in straight.items():
            assert resumed[step][0] == pytest.approx(loss, rel=1e-5), (mesh, step)
            assert resumed[step][1] == pytest.approx(norm, rel=1e-3), (mesh, step)


def test_moments_left_out_are_noticed(tmp_path, monkeypatch):
    """Negative control: without the optimizer's moments the losses differ by far more than the tolerance."""
    from ms4_recipes import sft
    from ms4_train.config import load_run
    from ms4_train.parallel.local import LocalEngine

    write_inputs(tmp_path)
    run(tmp_path, "straight", "one process", "full")
    run(tmp_path, "stopped", "one process", "full", stop=STOP)
    original = LocalEngine.import_state

    def forgetful(engine, read):
        def without(*place):
            found = dict(read(*place))
            found["exp_avg"] = found["exp_avg"] * 0
            return found

        original(engine, without)

    monkeypatch.setattr(LocalEngine, "import_state", forgetful)
    sft.run(load_run(tmp_path / "stopped.yaml", []))
    straight, resumed = values(tmp_path / "straight"), values(tmp_path / "stopped")
    assert any(abs(resumed[step][0] - straight[step][0]) > 1e-3 * straight[step][0] for step in range(STOP + 2, STEPS + 1))
