"""Host memory of a save: what is waited for takes no copy of the state, what is written in the background takes one."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]

MEMORY = """
import sys
from pathlib import Path
sys.path[:0] = ["tests"]
import torch
from support.run_state import saver
from torch import nn
from ms4_train.config.schema import TrainingSection
from ms4_train.parallel import Mesh
from ms4_train.parallel.local import LocalEngine
torch.manual_seed(0)
model = nn.ParameterList([nn.Parameter(torch.randn(1 << 19)) for _ in range(32)])   # 6.3 MB of state each, 201 MB in all
engine = LocalEngine(model, Mesh(), training=TrainingSection())
for piece in engine.export_state():
    [tensor.normal_() for tensor in piece.tensors.values()]   # until it is written, memory of zeros is not there

def resident(name):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024

class Elsewhere:
    # State that must be brought to the host in other memory, as that of a GPU: here it is of another type.
    mesh, model = engine.mesh, engine.model

    def __init__(self):
        self.pieces = list(engine.export_state())
        for piece in self.pieces:
            piece.tensors.update({kind: tensor.to(torch.bfloat16) for kind, tensor in piece.tensors.items()})

    def export_state(self):
        return iter(self.pieces)

for number, (name, background) in enumerate([("live", False), ("elsewhere", False), ("copy", True)]):
    source = Elsewhere() if name == "elsewhere" else engine
    with saver(Path(sys.argv[1]), source, background=background, shard_bytes=40 << 20) as made:
        Path("/proc/self/clear_refs").write_text("5")   # the peak is the present
        before = resident("VmRSS")
        made.save(number, {})
        made.finish()
        print(name, resident("VmHWM") - before)
"""


@pytest.mark.slow
def test_a_save_that_is_waited_for_holds_no_copy_of_the_state(tmp_path):
    """201 MB of state in files of 44 MB, large enough for memory to go back to the system. The save that copies all is the control."""
    done = subprocess.run([sys.executable, "-", tmp_path], input=MEMORY, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    grown = {name: int(count) for name, count in (line.split() for line in done.stdout.splitlines())}
    assert grown["live"] < 10e6
    assert 40e6 < grown["elsewhere"] < 60e6
    assert 190e6 < grown["copy"] < 240e6
