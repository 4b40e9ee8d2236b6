"""The names written down are transformers' own, of the whole model built without memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from ms4_train.config.importing.module_names import adaptable_names, is_text, kind_of, parameter_names


@pytest.fixture(scope="module")
def oracle():
    """transformers' model of the released size on the meta device."""
    from support.multimodal import hf_multimodal_config
    from transformers import Mistral3ForConditionalGeneration

    from ms4_train.model import TextConfig, VisionConfig

    build: Any = Mistral3ForConditionalGeneration
    with torch.device("meta"):
        return build(hf_multimodal_config(TextConfig(), VisionConfig()))


def test_parameters(oracle):
    names = [name for name, _ in oracle.named_parameters()]
    assert len(names) == 765
    assert Counter(parameter_names()) == Counter(names)


def test_adaptable_modules(oracle):
    """Every linear module and embedding, and nothing else."""
    names = [name for name, module in oracle.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    assert Counter(adaptable_names()) == Counter(names)


def test_kinds_mean_one_part_each(oracle):
    """An end of a name must not mean modules of both towers."""
    names = adaptable_names()
    for kind in set(map(kind_of, names)):
        found = [name for name in names if name == kind or name.endswith(f".{kind}")]
        assert found == [name for name in names if kind_of(name) == kind], kind
        assert len({is_text(name) for name in found}) == 1, kind
