"""Evaluation beside training: on the weights in place, without a trace in what is trained, into a store that a resumed run goes on with."""

from __future__ import annotations

import sqlite3

import pytest
import torch
from support.sft_files import metrics, sft_run, write_files

from ms4_evals.clients.engine import EngineClient
from ms4_kernels.step import NetworkStep
from ms4_recipes import sft
from ms4_train.chat import ChatTokenizer
from ms4_train.parallel import Mesh
from ms4_train.weights import load_model

ADAPTER = {"r": 4, "lora_alpha": 8, "target_modules": ["q_b_proj", "kv_b_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
EVALUATION = {
    "steps": 3,
    "tasks": [{"task": "arithmetic", "problems": 4}],
    "modes": {"none": {"temperature": 0.0, "max_tokens": 6}, "high": {"temperature": 0.7, "max_tokens": 12}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("answers"))


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["full", "lora"])
def test_training_goes_as_without_it_and_scores_are_logged(folder, adapter) -> None:
    name = "lora" if adapter else "full"
    sft.run(sft_run(folder, f"{name}-with", adapter=adapter, evaluation=EVALUATION))
    sft.run(sft_run(folder, f"{name}-without", adapter=adapter))
    losses = metrics(folder, f"{name}-with")
    assert len(losses) > 1
    assert losses == metrics(folder, f"{name}-without"), "generation has changed what is trained"
    for key in ("high/score", "none/score", "high/thinking_tokens"):
        assert list(metrics(folder, f"{name}-with", key=f"eval/arithmetic_digits_6/{key}")) == [3, 6]
    with sqlite3.connect(folder / f"{name}-with" / "results.sqlite") as store:
        assert store.execute("select count(*) from samples").fetchone()[0] == 2 * 2 * 4


def test_the_engine_runs_the_very_weights_that_are_trained(folder, monkeypatch) -> None:
    """By storage: every tensor that the compiled runner reads is a parameter of the model in training, adapter included."""
    seen: list[int] = []
    trained: list[torch.nn.Module] = []
    real, opened = EngineClient.answer, NetworkStep.__init__

    def answer(self, *arguments) -> None:
        trained[:] = [self._model]
        real(self, *arguments)

    def init(self, weights, pools, block_size) -> None:
        """What the engine's runner is given, not what it could have been given."""
        held = {parameter.data_ptr() for parameter in trained[0].parameters()}
        for layer in weights.layers:
            for projection in (layer.q_a, layer.q_b, layer.kv_a, layer.kv_b, layer.o, layer.shared_gate, layer.shared_down):
                tensors = [projection.weight] + [part for pairs in projection.adapters.values() for pair in pairs for part in pair[:2]]
                assert all(isinstance(tensor, torch.Tensor) and tensor.data_ptr() in held for tensor in tensors)
                seen.append(len(tensors))
            assert layer.experts.gate_up.data_ptr() in held
            assert layer.experts.down.data_ptr() in held
        opened(self, weights, pools, block_size)

    monkeypatch.setattr(NetworkStep, "__init__", init)
    monkeypatch.setattr(EngineClient, "answer", answer)
    sft.run(sft_run(folder, "shared", adapter=ADAPTER, evaluation=EVALUATION))
    assert max(seen) >= 3, "no adapter was seen"


def test_a_stop_ends_the_drawing_and_a_later_start_draws_the_rest(folder) -> None:
    """Nothing is scored then, and what was finished is kept."""
    from ms4_recipes.answer_tasks import TaskEvaluation

    config = sft_run(folder, "stopped", evaluation={**EVALUATION, "engine": {"max_batch_size": 1}})
    tokenizer, model = ChatTokenizer.of_model(config.model.path), load_model(config.model.path, dtype=torch.float32)
    assert config.evaluation is not None
    tasks = TaskEvaluation(config, config.evaluation, model, tokenizer, run="r", mesh=Mesh())
    asked = iter(range(1000))
    tasks.should_stop = lambda: next(asked) > 20
    assert tasks(3) == {}
    with sqlite3.connect(folder / "stopped" / "results.sqlite") as store:
        drawn = store.execute("select count(*) from samples").fetchone()[0]
    assert 0 < drawn < 8
    tasks.should_stop = lambda: False
    assert "eval/arithmetic_digits_6/high/score" in tasks(3)
    with sqlite3.connect(folder / "stopped" / "results.sqlite") as store:
        assert store.execute("select count(*) from samples").fetchone()[0] == 8
    tasks.close()
