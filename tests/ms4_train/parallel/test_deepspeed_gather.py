"""Generation between the steps of ZeRO 3: training goes on bit for bit, and the answers are those of weights that were never spread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.distributed import run_ranks

pytestmark = pytest.mark.slow
WORKER = Path(__file__).parent / "gather_worker.py"


def reports(folder, size, *names, check=True):
    outputs = run_ranks(WORKER, str(folder), str(size), *names, timeout=400, check=check)
    return outputs, [json.loads(path.read_text()) for path in sorted(folder.glob("?.json"))]


@pytest.mark.parametrize(
    ("size", "names"),
    [(2, ("full", "persistent", "hooks")), (2, ("checkpointing", "lora")), (2, ("vision", "offload")), (1, ("full",))],
    ids=["plain", "adapter", "vision", "replicated"],
)
def test_training_goes_as_without_generation(tmp_path, size, names):
    _, found = reports(tmp_path, size, *names)
    assert len(found) == 2
    for report in found:
        assert report.pop("hooks", {"inside": True, "after": True, "seen": True}) == {"inside": True, "after": True, "seen": True}
        for name, one in report.items():
            assert one["losses"], name
            assert one["bits"], "weights and moments, bit for bit"
            assert one["state"], "generation changes no weight"
            assert one["answers"], "those of ZeRO 2, where weights are never spread"
            assert one["answers change"], "training that changes no answer would show nothing"
            assert one["hooks"], "DeepSpeed finds its hooks where they were"
            assert one["sizes"], "what was spread is spread again, what was whole is whole"
            assert one["whole"]
            assert one["hooks inside"] <= 2 < 100 < one["hooks outside"], "the engine's own on the whole model remain, which is not called"
            assert one["partitioned"] == (name != "persistent")
            assert one["trained"], "the model is in training mode again"


def test_control_without_it_the_ranks_collide(tmp_path):
    """They call modules differently often, so DeepSpeed's gathering meets other messages: an error, or the end of a process."""
    outputs, found = reports(tmp_path, 2, "control", check=False)
    assert not any(report["control"].get("answers") for report in found)
    assert any("gloo" in output or "failed here" in output for output in outputs) or any(report["control"]["failed"] for report in found)
