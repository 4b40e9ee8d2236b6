"""transformers loads what is written here, whole, and computes what was trained.

The model was fine-tuned from a multimodal base: its text network is compared by logits, its vision weights bit by bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import layouts
from support.checkpoints import edit_json, relative_error
from support.trained import TINY
from torch import Tensor

from ms4_train.model import SequenceLayout
from ms4_train.weights import load_model
from ms4_train.weights.convert import convert

pytestmark = pytest.mark.slow

# Two orders of summation in fp32 over some hundred terms and two layers: 3e-6 was measured.
TOLERANCE = 1e-4


def loaded_whole(folder: Path) -> Any:
    """transformers' model of a folder; every key of the file has its place and the other way round."""
    import transformers

    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model_class = getattr(transformers, architecture)
    model, info = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")} == {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "mismatched_keys": set(),
    }
    return model.eval()


@pytest.fixture(scope="module")
def documents(trained) -> list[list[int]]:
    """Prompts with our answers, of both modes: the text on which the two must agree."""
    answered = zip(trained.prompts(), trained.our_tokens(), strict=True)
    return [[*request.prompt_ids, *tokens] for request, tokens in list(answered)[::5]]


@torch.no_grad()
def ours_and_theirs(folder: Path, oracle: Any, documents: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
    model = load_model(folder, dtype=torch.float32).eval()
    pairs = []
    for ids in documents:
        ids_t = torch.tensor(ids)
        logits_tv = model.logits(model(ids_t, SequenceLayout.from_lengths([len(ids)])))
        pairs.append((logits_tv, oracle(ids_t[None], use_cache=False).logits[0]))
    return pairs


def test_logits_of_the_fine_tuned_model_are_equal(trained, documents):
    oracle = loaded_whole(trained.model)
    assert type(oracle).__name__ == "Mistral3ForConditionalGeneration"
    errors = [relative_error(ours, theirs) for ours, theirs in ours_and_theirs(trained.model, oracle, documents)]
    assert max(errors) < TOLERANCE


def test_control_the_release_s_rope_parameters_would_compute_something_else(trained, documents, tmp_path):
    for file in trained.model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())

    def as_released(config):
        rope = config["text_config"]["rope_parameters"]
        rope["mscale_all_dim"] = 1.0
        rope.pop("attention_factor")

    edit_json(tmp_path / "config.json", as_released)
    pairs = ours_and_theirs(trained.model, loaded_whole(tmp_path), documents)
    assert min(relative_error(ours, theirs) for ours, theirs in pairs) > 100 * TOLERANCE


def vision_tensors(model: Any) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if "vision_tower" in name or "multi_modal_projector" in name}


def test_vision_weights_go_through_training_unchanged(trained):
    expected = layouts.hf_tensors(layouts.reference_pieces(dtype=torch.float32, tiny=TINY), "transformers")
    found = vision_tensors(loaded_whole(trained.model))
    assert set(found) == {name for name in expected if "vision_tower" in name or "multi_modal_projector" in name}
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


def test_through_native_and_back_nothing_changes(trained, documents, tmp_path):
    convert(trained.model, tmp_path / "native", to="native")
    convert(tmp_path / "native", tmp_path / "hf", to="hf")
    before, after = (load_file(folder / "model.safetensors") for folder in (trained.model, tmp_path / "hf"))
    assert set(before) == set(after)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    errors = [relative_error(*pair) for pair in ours_and_theirs(trained.model, loaded_whole(tmp_path / "hf"), documents)]
    assert max(errors) < TOLERANCE
