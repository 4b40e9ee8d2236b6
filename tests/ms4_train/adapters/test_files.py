"""Adapter folders are whole or absent, and one that does not fit the model is refused with the tensor named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import edit_json, full_section, our_logits, randomise, saved_tiny, write_safetensors
from support.models import tiny_config, tiny_model

from ms4_train.adapters import adapter_tensors, attach, load_adapter, save_adapter
from ms4_train.adapters.attach import adapter_parameters
from ms4_train.errors import AdapterError, MS4Error, StorageError, UntrustedInputError
from ms4_train.model import Mistral4Experts
from ms4_train.weights import base_fingerprint, load_model

OUTER_A = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
LINEAR_B = "base_model.model.model.layers.1.self_attn.q_a_proj.lora_B.weight"


def write(folder, model, **options):
    values = {"section": full_section(), "config": model.config, "base_path": "runs/base", "base_fingerprint": "sha256:abc"}
    save_adapter(adapter_tensors(model), folder, **(values | options))


@pytest.fixture
def adapted():
    model = tiny_model()
    attach(model, full_section())
    randomise(adapter_tensors(model))
    return model


@pytest.fixture
def folder(tmp_path, adapted):
    write(tmp_path / "a", adapted)
    return tmp_path / "a"


def refused(folder, model=None, fingerprint="sha256:abc"):
    model = model or tiny_model()
    with pytest.raises(MS4Error) as caught:
        load_adapter(model, folder, base_fingerprint=fingerprint)
    assert caught.value.fix
    assert caught.value.file
    assert not adapter_parameters(model)
    return caught.value


def change(folder, function):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    function(tensors)
    write_safetensors(file, tensors)


def _sorted(section):
    """PEFT writes targets as a set, so their order is lost."""
    return section.model_copy(
        update={"target_modules": sorted(section.target_modules), "target_parameters": sorted(section.target_parameters)}
    )


def test_round_trip_is_bit_exact(folder, adapted):
    model = tiny_model()
    section = load_adapter(model, folder, base_fingerprint="sha256:abc")
    assert _sorted(section) == _sorted(full_section())
    mine, theirs = adapter_tensors(model), adapter_tensors(adapted)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.equal(our_logits(model), our_logits(adapted))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_other_base_is_refused(folder):
    error = refused(folder, fingerprint="sha256:other")
    assert isinstance(error, AdapterError)
    assert "another model (runs/base)" in str(error)
    load_adapter(tiny_model(), folder, base_fingerprint=None)


def test_real_fingerprints_tell_two_models_apart(tmp_path, adapted):
    saved_tiny(tmp_path / "one", seed=0)
    saved_tiny(tmp_path / "two", seed=1)
    write(tmp_path / "a", adapted, base_fingerprint=base_fingerprint(tmp_path / "one"))
    load_adapter(load_model(tmp_path / "one", dtype=torch.float32), tmp_path / "a", base_fingerprint=base_fingerprint(tmp_path / "one"))
    refused(tmp_path / "a", load_model(tmp_path / "two", dtype=torch.float32), base_fingerprint(tmp_path / "two"))


@pytest.mark.parametrize("key", [OUTER_A, LINEAR_B])
def test_missing_tensor(folder, key):
    change(folder, lambda tensors: tensors.pop(key))
    assert refused(folder).key == key


def test_unexpected_tensor(folder):
    change(folder, lambda tensors: tensors.update({LINEAR_B + ".extra": torch.zeros(1)}))
    assert refused(folder).key == LINEAR_B + ".extra"


def test_tensors_of_modules_the_model_does_not_have(folder):
    change(folder, lambda tensors: tensors.update({LINEAR_B.replace("q_a_proj", "q_proj"): torch.zeros(24, 3)}))
    assert "q_proj" in str(refused(folder))


@pytest.mark.parametrize(("key", "shape"), [(LINEAR_B, (25, 3)), (OUTER_A, (24, 31)), (OUTER_A, (25, 32)), (OUTER_A, (24,))])
def test_misshapen_tensor(folder, key, shape):
    change(folder, lambda tensors: tensors.update({key: torch.zeros(shape)}))
    assert refused(folder).key == key


@pytest.mark.parametrize("rank", [1, 4, 10**12])
def test_rank_that_the_tensors_do_not_have(folder, rank):
    """The largest asks for more memory than there is, so it must be refused before parameters are made."""
    edit_json(folder / "adapter_config.json", lambda settings: settings.update(r=rank))
    error = refused(folder)
    assert error.key == "r"
    assert "has rank 3 in the file" in str(error)


def test_messages_count_and_hint_only_where_there_is_something_to_say(folder):
    change(folder, lambda tensors: tensors.update({"foo": torch.zeros(1)}))
    assert "0 more" not in str(refused(folder))
    assert "Nearest names: ." not in str(refused(folder))


@pytest.mark.parametrize(
    "overrides",
    [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"hidden_size": 32}, {"n_routed_experts": 16}, {"moe_intermediate_size": 16}],
)
def test_model_of_another_shape_is_refused_without_a_fingerprint(folder, overrides):
    """As with an adapter that PEFT wrote."""
    (folder / "ms4_adapter.json").unlink()
    refused(folder, tiny_model(tiny_config(**overrides)), None)


def test_damaged_files(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert isinstance(refused(folder), UntrustedInputError)
    file.unlink()
    assert isinstance(refused(folder), UntrustedInputError)
    assert "no such folder" in str(refused(folder / "nowhere"))


@pytest.mark.parametrize("name", ["adapter_config.json", "ms4_adapter.json"])
@pytest.mark.parametrize("text", ["[]", "{", '{"r": NaN}'])
def test_damaged_json(folder, name, text):
    (folder / name).write_text(text)
    assert refused(folder).file == str(folder / name)


def test_second_adapter_is_refused(folder):
    model = tiny_model()
    load_adapter(model, folder, base_fingerprint=None)
    with pytest.raises(AdapterError, match="already"):
        load_adapter(model, folder, base_fingerprint=None)


def test_quantised_adapter_tensor_is_refused(folder):
    change(folder, lambda tensors: tensors.update({LINEAR_B: tensors[LINEAR_B].to(torch.float8_e4m3fn)}))
    assert refused(folder).key == LINEAR_B


def test_bf16_adapter_loads_on_a_bf16_model(tmp_path, adapted):
    adapted.bfloat16()
    write(tmp_path / "a", adapted)
    assert load_file(tmp_path / "a" / "adapter_model.safetensors")[LINEAR_B].dtype == torch.bfloat16
    model = tiny_model(dtype=torch.bfloat16)
    load_adapter(model, tmp_path / "a", base_fingerprint=None)
    assert {tensor.dtype for tensor in adapter_tensors(model).values()} == {torch.bfloat16}
    assert torch.equal(our_logits(model), our_logits(adapted))


def test_model_with_part_of_the_experts_takes_its_part(tmp_path, folder, adapted):
    saved_tiny(tmp_path / "base")
    model = load_model(tmp_path / "base", dtype=torch.float32, expert_range=(2, 4))
    load_adapter(model, folder, base_fingerprint=None)
    for name, whole in adapter_tensors(adapted).items():
        part = adapter_tensors(model)[name]
        assert torch.equal(part, whole[2:4] if ".mlp.experts.lora." in name else whole)
    assert all(module.num_local_experts == 2 for module in model.modules() if isinstance(module, Mistral4Experts))


def test_adapter_folder_replaces_only_an_adapter(folder, adapted, tmp_path):
    write(folder, adapted, base_path="again")
    assert json.loads((folder / "ms4_adapter.json").read_text())["base_path"] == "again"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"notes\.txt"):
        write(folder, adapted)
    with pytest.raises(AdapterError, match="no adapter tensors"):
        save_adapter({}, tmp_path / "b", section=full_section(), config=adapted.config, base_path="b", base_fingerprint="")
    with pytest.raises(AdapterError, match="not an adapter parameter"):
        save_adapter(
            dict(adapted.named_parameters()),
            tmp_path / "b",
            section=full_section(),
            config=adapted.config,
            base_path="b",
            base_fingerprint="",
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_regular_expression_of_a_file_is_not_evaluated(folder):
    """An expression that would take for ever on these names is not looked at: targets come from the tensors."""
    edit_json(folder / "adapter_config.json", lambda content: content.update(target_modules=r"(([a-z_.0-9])+)+$!"))
    load_adapter(tiny_model(), folder, base_fingerprint=None)


FULL_DISK = """
import sys
from pathlib import Path
import ms4_train.weights.folder as folder
from ms4_train.adapters import adapter_tensors, attach, save_adapter
from ms4_train.errors import StorageError
from support.checkpoints import full_section
from support.models import tiny_model
folder.require_free_bytes = lambda path, needed: None
model = tiny_model()
section = full_section()
attach(model, section)
try:
    save_adapter(adapter_tensors(model), Path(sys.argv[1]) / "a", section=section, config=model.config, base_path="b", base_fingerprint="")
except StorageError as error:
    print(error)
    print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


def test_full_disk_leaves_nothing(tmp_path):
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no mount namespace, so no small disk can be made")
    repository = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PROGRAM": FULL_DISK, "PYTHONPATH": f"{repository / 'tests'}:{repository}:{repository / 'kernels'}"}
    command = f'mount -t tmpfs -o size=40k none {tmp_path} && exec {sys.executable} -c "$PROGRAM" {tmp_path}'
    done = subprocess.run(["unshare", "-Urm", "bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "disk is full" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
