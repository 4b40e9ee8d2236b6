"""The loop: what happens on which step, in which order, and what stops it. Whole runs are in tests/recipes/ms4_recipes/test_sft.py."""

import inspect
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from support.models import tiny_model

from ms4_train.config.schema import TrainingSection
from ms4_train.data import PackedBatch
from ms4_train.errors import TrainingError
from ms4_train.model import SequenceLayout
from ms4_train.parallel import Mesh
from ms4_train.parallel.local import LocalEngine
from ms4_train.training import FlopCounter, Speedometer, StopSignals, TrainingInterruptedError, TrainingRun, train
from ms4_train.training import evaluate as evaluate_module
from ms4_train.training import loop as loop_module
from ms4_train.training.loop import forward_backward


def batch(seed, lengths=(6, 4), masked=False):
    ids = torch.randint(0, 512, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    targets = torch.full_like(ids, -100) if masked else ids.roll(-1)
    return PackedBatch(ids, targets, lengths, [f"rows.jsonl:{seed}"] * len(lengths), 0 if masked else sum(lengths))


class Batches:
    """A loader of as many different batches as are asked for."""

    epoch = 0.5

    def __init__(self, masked=False):
        self.masked = masked
        self.taken = 0

    def __iter__(self):
        while True:
            self.taken += 1
            yield batch(self.taken, masked=self.masked)


class Log:
    """Records what the loop reports and saves, in order."""

    def __init__(self):
        self.events = []

    def log(self, step, metrics):
        self.events.append(("eval" if "eval_loss" in metrics else "train", step))
        self.metrics = metrics

    def save(self, step, state):
        self.events.append(("save", step))
        return Path(f"step-{step}")

    def status(self):
        return {"state": "written"}

    def settle(self, statuses):
        self.settled = statuses

    def finish(self):
        self.events.append(("finished", None))


def make_run(log, *, masked=False, save=True, total=6, **keys):
    model = tiny_model()
    section = TrainingSection(max_steps=total, learning_rate=1e-3, **keys)
    return TrainingRun(
        section=section,
        engine=LocalEngine(model, Mesh(), training=section),
        model=model,
        loader=Batches(masked),
        eval_batches=[batch(99)],
        tracker=log,
        total_steps=total,
        epoch_steps=4,
        flops=FlopCounter.of_model(model),
        speed=Speedometer(1e9),
        saver=log if save else None,
    )


def test_order_of_events():
    log = Log()
    train(make_run(log, logging_steps=2, eval_strategy="steps", eval_steps=3, save_steps=3), StopSignals())
    assert log.events == [("train", 2), ("eval", 3), ("save", 3), ("train", 4), ("train", 6), ("eval", 6), ("save", 6), ("finished", None)]
    assert log.metrics.keys() == {"eval_loss", "eval_tokens"}


def test_epoch_strategies_and_the_last_step():
    log = Log()
    train(make_run(log, logging_steps=9, eval_strategy="epoch", save_strategy="epoch"), StopSignals())
    assert log.events == [("eval", 4), ("save", 4), ("train", 6), ("eval", 6), ("save", 6), ("finished", None)]


def test_resumed_run_does_the_rest():
    log = Log()
    run = make_run(log, save=False)
    train(run, StopSignals(), first_step=4)
    assert log.events == [("train", 5), ("train", 6)]
    assert run.loader.taken == 2
    assert train(run, StopSignals(), first_step=6) == {}


def test_gradient_is_that_of_the_mean_over_all_tokens_of_the_step():
    run = make_run(Log())
    batches = [batch(1, (6, 4)), batch(2, (3,)), batch(3, (2, 2), masked=True)]
    result = forward_backward(run, batches)
    ours = {name: parameter.grad.clone() for name, parameter in run.model.named_parameters()}
    run.model.zero_grad()
    total = torch.zeros(())
    for item in batches[:2]:
        logits = run.model.logits(run.model(item.input_ids_t, SequenceLayout.from_lengths(item.lengths)))
        total = total + torch.nn.functional.cross_entropy(logits, item.target_ids_t, reduction="sum")
    (total / 13).backward()
    assert result.loss == pytest.approx(float(total.detach()) / 13, rel=1e-5)
    assert (result.tokens, result.trained_tokens) == (17, 13)
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_step_without_loss_is_harmless():
    log = Log()
    results = train(make_run(log, masked=True, total=2, save=False), StopSignals())
    assert results == {"loss": 0.0}
    assert log.metrics["grad_norm"] == 0.0


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_finite_stops_with_the_weights_as_they_were(where, monkeypatch):
    log = Log()
    run = make_run(log)
    if where == "loss":
        with torch.no_grad():
            run.model.lm_head.weight[3] = math.inf
    else:
        run.model.lm_head.weight.register_hook(lambda grad: grad * math.nan)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    with pytest.raises(TrainingError, match="loss of step 1 is .*rows.jsonl:1" if where == "loss" else "gradient norm of step 1 is nan"):
        train(run, StopSignals())
    assert log.events == []
    assert all(torch.equal(before[name], parameter) for name, parameter in run.model.named_parameters())


def test_signal_finishes_the_step_and_saves():
    log = Log()
    run = make_run(log, save_steps=100)
    run.loader = Interrupting(at=3)
    with StopSignals() as stop, stop.finishing(), pytest.raises(TrainingInterruptedError, match="SIGINT after step 3") as caught:
        train(run, stop)
    assert log.events[-3:] == [("train", 3), ("save", 3), ("finished", None)]
    assert caught.value.exit_code == 130


def test_signal_during_validation_gives_it_up_and_saves(monkeypatch):
    log = Log()
    run = make_run(log, eval_strategy="steps", eval_steps=2, save_steps=100)
    run.eval_batches = [batch(99)] * 1000
    passes, hidden_states = [], evaluate_module.hidden_states

    def counting(*arguments):
        passes.append(0)
        if len(passes) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return hidden_states(*arguments)

    monkeypatch.setattr(evaluate_module, "hidden_states", counting)
    with StopSignals() as stop, stop.finishing(), pytest.raises(TrainingInterruptedError, match="SIGTERM after step 2"):
        train(run, stop)
    assert len(passes) == 3
    assert log.events[-2:] == [("save", 2), ("finished", None)]
    assert ("eval", 2) not in log.events


def test_signal_in_the_last_step_changes_nothing():
    log = Log()
    run = make_run(log, total=3)
    run.loader = Interrupting(at=3)
    with StopSignals() as stop, stop.finishing():
        assert "loss" in train(run, stop)
    assert log.events[-2:] == [("save", 3), ("finished", None)]


class Interrupting(Batches):
    """Ctrl-C comes while a batch is being made."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def __iter__(self):
        for item in super().__iter__():
            if self.taken == self.at:
                os.kill(os.getpid(), signal.SIGINT)
            yield item


def test_the_loop_fits_on_a_screen():
    assert len(inspect.getsource(loop_module.train).splitlines()) <= 60
