"""Adapters of which one process's share was saved are found; adapters that training leaves behind are not.

The first case is axolotl#3772: FSDP on 8 processes, an eighth of the rows of every lora_B, the rest exactly zero.
"""

import pytest
import torch
from support.adapted import adapted, section
from support.checkpoints import rewrite
from support.models import tiny_model

from ms4_train.adapters import adapter_tensors, load_adapter, save_adapter
from ms4_train.adapters.half_saved import lost_share, occupancy
from ms4_train.adapters.stored import find_lost_share
from ms4_train.errors import AdapterError

EXPERTS, RANK = 8, 4


def tensors(seed=0):
    """A trained adapter of everything: all of A and B is random."""
    model = adapted(section(preset="attention+experts"))
    torch.manual_seed(seed)
    return {name: torch.randn(value.shape) for name, value in adapter_tensors(model).items()}


def keep(found, axis, processes, share, *, of="lora_B", stack_axis=None):
    """Set all but one share of an axis to zero in every B (or A)."""
    letter = {"lora_B": "b", "lora_A": "a"}[of]
    for name, value in found.items():
        where = stack_axis if value.ndim == 3 else axis
        if where is None or not (f".{of}." in name or f"_{letter}_" in name.rpartition(".")[2]):
            continue
        width = -(-value.shape[where] // processes)
        index = torch.arange(value.shape[where])
        keeps = (index >= share * width) & (index < (share + 1) * width)
        value.mul_(keeps.reshape([-1 if number == where else 1 for number in range(value.ndim)]))
    return found


@pytest.mark.parametrize(("processes", "share"), [(8, 0), (2, 1), (4, 2), (3, 1)])
def test_share_of_the_outputs(processes, share):
    lost = find_lost_share(keep(tensors(), 0, processes, share, stack_axis=1))
    assert lost is not None
    assert (lost.axis, lost.share) == ("outputs", share) or lost.processes > processes
    assert "exactly zero" in lost.message


@pytest.mark.parametrize("of", ["lora_A", "lora_B"])
def test_share_of_the_ranks(of):
    axis = (0, 1) if of == "lora_A" else (1, 2)
    lost = find_lost_share(keep(tensors(), axis[0], 2, 0, of=of, stack_axis=axis[1]))
    assert lost is not None
    assert lost.axis == f"ranks in {of}"


@pytest.mark.parametrize("of", ["lora_A", "lora_B"])
@pytest.mark.parametrize(("processes", "share"), [(2, 0), (4, 3), (8, 2)])
def test_share_of_the_experts(of, processes, share):
    """The layers are whole in everything else, as after expert parallelism without gathering."""
    lost = find_lost_share(keep(tensors(), None, processes, share, of=of, stack_axis=0))
    assert lost is not None
    assert (lost.axis.split()[0], lost.processes, lost.share) == ("experts", processes, share)


def test_sound_adapters_pass():
    assert find_lost_share(tensors()) is None
    untrained = {name: value * (".lora_A." in name or "_a_er" in name) for name, value in tensors().items()}
    assert find_lost_share(untrained) is None


def test_targets_that_were_not_trained_pass():
    found = tensors()
    for name, value in found.items():
        if "layers.0" in name and (".lora_B." in name or "_b_" in name.rpartition(".")[2]):
            value.zero_()
    assert find_lost_share(found) is None


@pytest.mark.parametrize("used", [[[1], [5]], [[0, 1, 2, 3], [0, 5]], [[0, 1], [1, 3]], [[7, 3, 2, 0], [6, 5, 4, 1]]])
def test_experts_that_never_saw_a_token_pass(used):
    found = tensors()
    for name, value in found.items():
        if "_b_" in name.rpartition(".")[2]:
            experts = used[0] if "layers.0" in name else used[1]
            value[[index for index in range(EXPERTS) if index not in experts]] = 0
    assert find_lost_share(found) is None


def test_one_expert_without_tokens_in_every_layer_passes():
    found = tensors()
    for name, value in found.items():
        if "_b_" in name.rpartition(".")[2]:
            value[EXPERTS - 1] = 0
    assert find_lost_share(found) is None


def test_padded_ranks_pass():
    """Zero in A and in B: a smaller adapter in a larger one."""
    found = tensors()
    for name, value in found.items():
        if ".lora_A." in name:
            value[RANK // 2 :] = 0
        elif ".lora_B." in name:
            value[:, RANK // 2 :] = 0
    assert find_lost_share(found) is None


def test_one_whole_pair_is_enough_to_pass():
    found = keep(tensors(), 0, 8, 0, stack_axis=1)
    name = "model.layers.1.self_attn.o_proj.lora_B.default.weight"
    found[name] = torch.randn(found[name].shape)
    stacks = {other: value for other, value in found.items() if value.ndim == 3}
    linears = {other: value for other, value in found.items() if value.ndim == 2}
    assert find_lost_share(linears) is None
    assert find_lost_share(stacks) is not None
    assert find_lost_share(found) is not None  # stacks are judged apart


def test_pair_of_zeros_says_nothing():
    assert occupancy("x", torch.ones(1, 2, 3), torch.zeros(1, 4, 2)) is None
    assert lost_share([]) is None


def test_half_saved_folder_is_refused_and_a_sound_one_is_not(tmp_path):
    settings = section(preset="attention+experts")
    model = adapted(settings)
    values = {"section": settings, "config": model.config, "base_path": "base", "base_fingerprint": "sha256:0"}
    save_adapter(adapter_tensors(model), tmp_path / "a", **values)
    (tmp_path / "a" / "ms4_adapter.json").unlink()

    def lose(stored):
        for name, value in stored.items():
            if ".lora_B." in name:
                value[-(-len(value) // 8) :] = 0

    load_adapter(tiny_model(), tmp_path / "a", base_fingerprint=None)
    rewrite(tmp_path / "a", lose)
    with pytest.raises(AdapterError, match="half-saved: of the outputs") as caught:
        load_adapter(tiny_model(), tmp_path / "a", base_fingerprint=None)
    assert caught.value.fix is not None
    assert "gathered" in caught.value.fix
