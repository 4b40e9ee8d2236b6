"""The batches of a bad step: kept whole, read back, and bad again when the model gets them. On ranks: ``support.bad_steps``."""

import json
import math
import subprocess
import sys

import pytest
import torch
from support.distributed import ROOT, rank_environment
from support.models import tiny_model

from ms4_train.config.schema import TrainingSection
from ms4_train.data import PackedBatch
from ms4_train.errors import DataError, NotFiniteError, UntrustedInputError
from ms4_train.model import ImageBatch
from ms4_train.parallel import Mesh
from ms4_train.parallel.local import LocalEngine
from ms4_train.training import FlopCounter, Speedometer, StopSignals, TrainingRun, train
from ms4_train.training.bad_step import BadStep, Draws, folder_of, read_bad_step, write_bad_step
from ms4_train.training.forward import hidden_states
from ms4_train.training.loss import next_token_loss

POISON = 77


def batch(seed, poisoned=False, lengths=(6, 4)):
    """Random tokens; the poisoned one has the token whose output weight is infinite as a target."""
    ids = torch.randint(100, 500, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    targets = ids.roll(-1)
    if poisoned:
        ids[2] = POISON
    return PackedBatch(ids, targets, lengths, [f"rows.jsonl:{10 * seed}", f"rows.jsonl:{10 * seed + 1}"], sum(lengths))


class Log:
    def log(self, step, metrics):
        pass


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """(model, folder of the run, its error): the embedding of one token is infinite, and step 2 has it in its second micro batch."""
    output = tmp_path_factory.mktemp("out")
    model = tiny_model()
    section = TrainingSection(max_steps=4, learning_rate=1e-4, gradient_accumulation_steps=2)
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = math.inf
    run = TrainingRun(
        section=section,
        engine=LocalEngine(model, Mesh(), training=section),
        model=model,
        loader=[batch(1), batch(2), batch(3), batch(4, poisoned=True)],
        eval_batches=[],
        tracker=Log(),
        total_steps=4,
        epoch_steps=4,
        flops=FlopCounter.of_model(model),
        speed=Speedometer(1e9),
        saver=None,
        output=output,
        seed=11,
    )
    with pytest.raises(NotFiniteError) as caught:
        train(run, StopSignals())
    return model, output, caught.value


def test_the_error_names_step_rows_folder_and_fix(broken):
    _, output, error = broken
    assert str(error).startswith("the loss of step 2 is nan; the weights were not changed. Rows of the bad batch: rows.jsonl:40, ")
    assert f"The batches are in {output / 'bad-step-000002'}." in str(error)
    assert "learning_rate" in error.fix
    assert error.on_all_ranks
    assert [path.name for path in output.iterdir()] == ["bad-step-000002"]


def test_the_batches_give_the_same_losses_again(broken):
    model, output, _ = broken
    bad = read_bad_step(folder_of(output, 2), 0)
    assert (bad.step, bad.seed) == (2, 11)
    assert [one.row_ids[0] for one in bad.batches] == ["rows.jsonl:30", "rows.jsonl:40"]
    bad.restore_random_state()
    with torch.no_grad():
        losses = [next_token_loss(model.lm_head, hidden_states(model, one, torch.device("cpu")), one.target_ids_t) for one in bad.batches]
    assert math.isnan(float(losses[1]))
    assert math.isnan(bad.nll_sums[1])
    assert float(losses[0]).hex() == bad.nll_sums[0].hex()
    with torch.no_grad():  # control: other rows give another loss
        other = batch(1)
        loss = next_token_loss(model.lm_head, hidden_states(model, other, torch.device("cpu")), other.target_ids_t)
    assert float(loss).hex() != bad.nll_sums[0].hex()


def test_a_reader_sees_the_rows_and_their_loss(broken):
    _, output, _ = broken
    described = json.loads((folder_of(output, 2) / "rank-00000.json").read_text())
    assert described["micro_batches"][1]["rows"] == ["rows.jsonl:40", "rows.jsonl:41"]
    assert described["micro_batches"][1]["loss"] == "nan"
    assert float(described["micro_batches"][0]["loss"]) == pytest.approx(math.log(512), rel=0.2)


def test_images_and_the_random_state_come_back(tmp_path):
    images = ImageBatch(torch.randn(8, 12), ((2, 2), (2, 2)))
    one = PackedBatch(torch.arange(10), torch.arange(10), (6, 4), ["ü:1", "b:2"], 10, images)
    write_bad_step(tmp_path / "x", 3, BadStep(7, "why", math.inf, 5, [one], [1.25], Draws.now()))
    expected = torch.rand(5)
    bad = read_bad_step(tmp_path / "x", 3)
    bad.restore_random_state()
    assert torch.equal(torch.rand(5), expected)
    assert (bad.reason, bad.value, bad.nll_sums) == ("why", math.inf, [1.25])
    back = bad.batches[0]
    assert back.images.grids == images.grids
    assert torch.equal(back.images.patches_pi, images.patches_pi)
    assert (back.row_ids, back.lengths, back.num_trained) == (["ü:1", "b:2"], (6, 4), 10)


def test_what_is_no_such_folder_is_said(tmp_path):
    with pytest.raises(UntrustedInputError, match="rank-00000"):
        read_bad_step(tmp_path, 0)
    write_bad_step(tmp_path, 0, BadStep(7, "why", math.inf, 5, [batch(1)], [1.0], Draws.now()))
    (tmp_path / "rank-00000.json").write_text('{"step": 1}')
    with pytest.raises(DataError, match="not the record of a bad step"):
        read_bad_step(tmp_path, 0)


def on_ranks(folder, stages):
    command = [sys.executable, "-m", "support.bad_steps", str(folder), stages]
    done = subprocess.run(command, env=rank_environment(0, 1, 0), cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def check_ranks(report):
    """Both ranks end alike, their state is that of before the step, and rank 1 kept the bad batch."""
    for name, case in report.items():
        assert case["codes"] == [2, 2], (name, case["output"])
        assert case["left"] == []
        errors = [next(line for line in output.splitlines() if line.startswith("error: ")) for output in case["output"]]
        assert errors[0] == errors[1], name
        what = name.split()[0]
        assert f"the {'loss' if what == 'loss' else 'gradient norm'} of step 3 is " in errors[0], name
        for before, after in case["sums"]:
            assert before == after, name
        assert case["sums"][0] != case["sums"][1]  # the sums do tell: ranks hold different experts
        assert [kept["step"] for kept in case["kept"]] == [3, 3]
        assert [kept["nll"][1] == "nan" for kept in case["kept"]] == [False, what == "loss"], name
        if what == "loss":
            assert case["kept"][1]["rows"][1][0] in errors[0]


@pytest.mark.slow
def test_one_bad_rank_stops_all_before_the_step_under_every_zero_stage(tmp_path):
    report = on_ranks(tmp_path, "0,1,2,3")
    assert len(report) == 14
    check_ranks(report)
