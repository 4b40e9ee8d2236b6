"""The best model of a run: which step is kept, that it is the model of that step, and what a resumed run finds."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from support.sft_files import metrics, sft_run, write_files

from ms4_recipes import sft
from ms4_recipes.answer_tasks import TaskEvaluation
from ms4_recipes.best_model import BestModel
from ms4_train.adapters import adapter_tensors
from ms4_train.errors import CheckpointError, ConfigError, StorageError

KNOWN = ["aime_2025/high/score", "aime_2025/none/score", "aime_2025/high/total_chars"]


def keeper(folder, metric="aime_2025/high/score", greater=True):
    return BestModel(folder, metric, greater_is_better=greater, known=KNOWN)


def writes(text):
    def save(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model").write_text(text)

    return save


@pytest.mark.parametrize(("greater", "kept"), [(True, [1, 3]), (False, [1, 2, 5])])
def test_only_a_better_value_is_kept(tmp_path, greater, kept):
    best = keeper(tmp_path / "best", greater=greater)
    values = {1: 0.3, 2: 0.2, 3: 0.4, 4: 0.4, 5: 0.1}
    saved = [step for step, value in values.items() if best.offer(step, {"eval/aime_2025/high/score": value}, writes(str(step)))]
    assert saved == kept
    assert (tmp_path / "best" / "model").read_text() == str(kept[-1])
    assert json.loads((tmp_path / "best" / "best.json").read_text())["step"] == kept[-1]


def test_a_later_start_goes_on_from_the_record_and_repeats_a_step_that_was_cut(tmp_path):
    first = keeper(tmp_path)
    first.offer(3, {"eval/aime_2025/high/score": 0.5}, writes("three"))
    again = keeper(tmp_path, metric="eval/aime_2025/high/score")
    assert not again.offer(2, {"eval/aime_2025/high/score": 0.5}, writes("two"))
    assert again.offer(3, {"eval/aime_2025/high/score": 0.5}, writes("three again")), "the numbers may be older than the files"
    assert not again.offer(4, {}, writes("four")), "no finished sample, no comparison"

    def full(folder):
        raise StorageError("the disk is full.", file=folder)

    with pytest.raises(StorageError):
        again.offer(5, {"eval/aime_2025/high/score": 0.9}, full)
    assert keeper(tmp_path).best.step == 3, "what could not be written is not recorded"
    assert keeper(tmp_path, metric="aime_2025/none/score").best is None, "another metric begins anew"


def test_what_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"aime_2025/high/scor.*aime_2025/high/score"):
        keeper(tmp_path, metric="aime_2025/high/scor")
    (tmp_path / "best.json").write_text('{"step": "x"}')
    with pytest.raises(CheckpointError, match=r"best\.json"):
        keeper(tmp_path)


ADAPTER = {"r": 4, "lora_alpha": 8, "target_modules": ["q_b_proj"]}
EVALUATION = {
    "steps": 2,
    "tasks": [{"task": "arithmetic", "problems": 3}],
    "modes": {"none": {"temperature": 0.0, "max_tokens": 6}, "high": None},
    "metric_for_best_model": "arithmetic_digits_6/none/total_chars",
    "greater_is_better": False,
}


def test_a_run_keeps_the_model_of_its_best_step(tmp_path, monkeypatch):
    """The tensors in training are noted at every evaluation; the kept files are those of the step that the record names."""
    folder, seen, real = write_files(tmp_path), {}, TaskEvaluation.__call__

    def noting(self, done):
        seen[done] = {name: tensor.detach().clone() for name, tensor in adapter_tensors(self._model).items()}
        return real(self, done)

    monkeypatch.setattr(TaskEvaluation, "__call__", noting)
    sft.run(sft_run(folder, "whole", adapter=ADAPTER, evaluation=EVALUATION))
    record = json.loads((folder / "whole" / "best" / "best.json").read_text())
    assert metrics(folder, "whole", key="eval/best_step")[6] == record["step"]
    values = metrics(folder, "whole", key="eval/arithmetic_digits_6/none/answer_tokens")
    assert list(values) == list(seen) == [2, 4, 6]
    kept = load_file(folder / "whole" / "best" / "adapter" / "adapter_model.safetensors")
    matching = [step for step, tensors in seen.items() if same_values(kept, tensors)]
    assert matching == [record["step"]]


def same_values(kept, tensors):
    """Files name tensors as PEFT does, so values are compared, in the order of both names, which is the same."""
    assert len(kept) == len(tensors) > 0
    pairs = zip((kept[name] for name in sorted(kept)), (tensors[name] for name in sorted(tensors)), strict=True)
    return all(torch.equal(left, right.reshape(left.shape)) for left, right in pairs)


def test_an_unknown_metric_is_refused_before_the_first_step(tmp_path):
    folder = write_files(tmp_path)
    with pytest.raises(ConfigError, match="metric_for_best_model"):
        sft.run(sft_run(folder, "bad", adapter=ADAPTER, evaluation=EVALUATION | {"metric_for_best_model": "score"}))
