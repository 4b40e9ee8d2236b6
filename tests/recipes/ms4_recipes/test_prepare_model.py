"""The model as a run gets it: what is quantised, what is trained, on which experts; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import ATTENTION, STACKS
from support.every_layout import NAMES, QUANTISED, write_layout
from support.sft_files import sft_run

from ms4_recipes.prepare_model import PreparedModel, prepare_model
from ms4_train.errors import ConfigError
from ms4_train.model.quantised import is_quantised, quantised_modules
from ms4_train.parallel import Mesh

LORA = {"r": 2, "target_modules": ATTENTION, "target_parameters": STACKS}


def prepare(base: Path, mesh: Mesh | None = None, **sections: Any) -> PreparedModel:
    model = {"path": str(base), **sections.pop("model", {})}
    return prepare_model(sft_run(base.parent, model=model, **sections), mesh or Mesh(), "sha256:0")


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_stay_quantised_and_trained_ones_do_not(tmp_path: Path, name: str) -> None:
    base = write_layout(tmp_path, name).folder
    lora, full = prepare(base, adapter=LORA), prepare(base)
    assert is_quantised(lora.model) == (name in QUANTISED)
    assert not is_quantised(full.model)
    assert all(parameter.requires_grad == ("lora" in key) for key, parameter in lora.model.named_parameters())
    assert all(parameter.requires_grad for parameter in full.model.parameters())
    assert not is_quantised(prepare(base, adapter=LORA, model={"dequantize": True}).model)
    assert (lora.base_weights is None) == (name not in QUANTISED)
    if name not in QUANTISED:
        assert not is_quantised(prepare(base, model={"dequantize": False}).model), "bf16 weights ignore the key"
        return
    with pytest.raises(ConfigError) as caught:
        prepare(base, model={"dequantize": False})
    assert caught.value.key == "model.dequantize"
    assert caught.value.fix == "leave it out, or add an adapter section."
    assert QUANTISED[name] in str(caught.value)


def test_a_rank_reads_the_codes_of_its_own_experts(tmp_path: Path) -> None:
    base = write_layout(tmp_path, "native-fp8").folder
    whole = dict(quantised_modules(prepare(base, adapter=LORA).model))
    mesh = Mesh(rank=1, world_size=4, expert_parallel_size=4, expert_parallel_rank=1)
    part = dict(quantised_modules(prepare(base, mesh, adapter=LORA).model))
    assert whole.keys() == part.keys()
    for name, module in part.items():
        codes, expected = module.value().tensors[0], whole[name].value().tensors[0]
        assert torch.equal(codes, expected[2:4] if codes.ndim == 3 else expected), name
