"""Adapters of which one process's share was saved are found; adapters that training leaves behind are not.

The first case is axolotl#3772: FSDP on 8 processes, an eighth of the rows of every lora_B, the rest exactly zero.
"""

import copy

import pytest
import torch
from support.adapted import adapted, section
from support.checkpoints import rewrite
from support.models import tiny_model
from support.multimodal import tiny_multimodal

from ms4_train.adapters import adapter_tensors, load_adapter, save_adapter
from ms4_train.adapters.half_saved import component_of, find_lost_share, lost_share, occupancy
from ms4_train.adapters.summary import inspect_adapter
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


WHOLE = section(
    preset=None,
    target_modules=[*section(preset="all").target_modules, "embed_tokens", "lm_head"],
    target_parameters=[*section(preset="all").target_parameters, "mlp.gate.weight"],
)
COMPONENTS = [
    "the text attention",
    "the shared experts",
    "the routed experts",
    "the routers",
    "the vision tower",
    "the projector",
    "model.embed_tokens",
    "lm_head",
]


def everything(settings=WHOLE):
    """A trained adapter of every component, and the base."""
    model = adapted(settings, vision=True)
    return {name: value.detach().clone() for name, value in adapter_tensors(model).items()}, tiny_multimodal()


def is_side_b(name):
    return ".lora_B." in name or "_embedding_B." in name or "_b_" in name.rpartition(".")[2]


def halve(found, *components, but=()):
    """Set the second half of the outputs of every B of some components to zero; of routers these are experts."""
    for name, value in found.items():
        if is_side_b(name) and component_of(name) in components and name not in but:
            value.narrow(-2, value.shape[-2] // 2, value.shape[-2] // 2).zero_()
    return found


@pytest.mark.parametrize("component", COMPONENTS)
def test_component_is_judged_whatever_the_others_are(component):
    found, model = everything()
    assert find_lost_share(found, model) is None
    lost = find_lost_share(halve(found, component), model)
    assert lost is not None
    assert (lost.axis, lost.share) == ("experts" if component == "the routers" else "outputs", 0)
    assert component in lost.message
    assert component_of(lost.name) == component


@pytest.mark.parametrize("components", [COMPONENTS[:2], COMPONENTS[4:6]])
def test_half_of_the_text_or_of_the_vision_linears(components):
    found, model = everything()
    assert find_lost_share(halve(found, *components), model) is not None


def test_whole_pair_helps_its_own_component_alone():
    """What remains within one component: all of its pairs must be cut alike."""
    whole = "model.layers.1.self_attn.o_proj.lora_B.default.weight"
    assert find_lost_share(halve(everything()[0], "the text attention", but=[whole])) is None
    lost = find_lost_share(halve(everything()[0], *COMPONENTS, but=[whole]))
    assert lost is not None
    assert component_of(lost.name) != "the text attention"


@pytest.mark.parametrize(("used", "lost"), [([[0, 1, 2, 3], [0, 5]], False), ([[1], [2]], False), ([[0, 2], [1, 3]], True)])
def test_routers_rows_of_experts_without_tokens_pass(used, lost):
    found, model = everything()
    for name, value in found.items():
        if component_of(name) == "the routers" and is_side_b(name):
            experts = used[0] if "layers.0" in name else used[1]
            value[[index for index in range(EXPERTS) if index not in experts]] = 0
    assert (find_lost_share(found, model) is not None) == lost


def test_untrained_and_padded_components_pass():
    found, model = everything()
    for name, value in found.items():
        if component_of(name) == "the vision tower" and is_side_b(name):
            value.zero_()
        elif component_of(name) == "the projector":
            value.narrow(1 if is_side_b(name) else 0, RANK // 2, RANK // 2).zero_()
        elif ".lora_embedding_A." in name:
            value[:, 100:] = 0  # tokens that were never seen
    assert find_lost_share(found, model) is None


SAVED = section(target_modules=["o_proj"], modules_to_save=["lm_head", "embed_tokens", "multi_modal_projector.norm"], use_dora=True)
HEAD, MAGNITUDE = "lm_head.modules_to_save.default.weight", "model.layers.1.self_attn.o_proj.lora_magnitude_vector.default.weight"


@pytest.mark.parametrize("name", [HEAD, MAGNITUDE, "multi_modal_projector.norm.modules_to_save.default.weight"])
@pytest.mark.parametrize(("processes", "kept"), [(2, 0), (3, 1), (8, 5), (16, 7)])
def test_share_of_a_whole_tensor_is_lost(name, processes, kept):
    found, model = everything(SAVED)
    assert find_lost_share(found, model) is None
    width = -(-len(found[name]) // processes)
    left = found[name][kept * width : (kept + 1) * width].clone()
    found[name].zero_()
    found[name][kept * width : (kept + 1) * width] = left
    for base in (model, copy.deepcopy(model).to("meta"), None):
        lost = find_lost_share(found, base)
        assert lost is not None
        assert lost.name == name
        assert "exactly zero" in lost.message


@pytest.mark.parametrize("name", [HEAD, MAGNITUDE])
def test_whole_tensor_of_zeros_or_one_zero_share_is_lost(name):
    found, model = everything(SAVED)
    kept = found[name].clone()
    found[name][: len(kept) // 8] = 0
    assert find_lost_share(found, model) is not None
    found[name].zero_()
    lost = find_lost_share(found, model)
    assert lost is not None
    assert "every value" in lost.message


@pytest.mark.parametrize("rows", [slice(256, None), slice(None)])
def test_rows_that_are_zero_in_the_base_pass(rows):
    found, model = everything(SAVED)
    found[HEAD][rows] = 0
    assert find_lost_share(found, model) is not None  # control
    model.lm_head.weight.data[rows] = 0
    assert find_lost_share(found, model) is None


def test_some_zero_rows_of_a_whole_tensor_pass():
    found, model = everything(SAVED)
    found[HEAD][::2] = 0
    found["model.embed_tokens.modules_to_save.default.weight"][-40:] = 0
    assert find_lost_share(found, model) is None


def test_pair_of_zeros_says_nothing():
    assert occupancy("x", torch.ones(1, 2, 3), torch.zeros(1, 4, 2)) is None
    assert lost_share([], "x") is None


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


@pytest.mark.parametrize("part", ["language_model.layers", "vision_tower", "lm_head.weight"])
def test_folder_with_one_half_saved_part_is_refused(tmp_path, part):
    settings = section(preset="all", modules_to_save=["lm_head"])
    model = adapted(settings, vision=True)
    values = {
        "section": settings,
        "config": model.config,
        "vision": model.vision_config,
        "base_path": "base",
        "base_fingerprint": "sha256:0",
    }
    save_adapter(adapter_tensors(model), tmp_path / "a", **values)
    (tmp_path / "a" / "ms4_adapter.json").unlink()
    assert inspect_adapter(tmp_path / "a").problems == ()
    load_adapter(tiny_multimodal(), tmp_path / "a", base_fingerprint=None)

    def lose(stored):
        for name, value in stored.items():
            if part in name and ".lora_A." not in name:
                value[len(value) // 2 :] = 0

    rewrite(tmp_path / "a", lose)
    with pytest.raises(AdapterError, match="half-saved"):
        load_adapter(tiny_multimodal(), tmp_path / "a", base_fingerprint=None)
    (problem,) = inspect_adapter(tmp_path / "a").problems
    assert "half-saved" in problem
