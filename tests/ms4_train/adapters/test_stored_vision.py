"""An adapter of the vision is refused on a base with another tower; one of the text alone is not."""

import pytest
from support.multimodal import tiny_multimodal

from ms4_train.adapters import adapter_tensors, attach, load_adapter, save_adapter
from ms4_train.config.schema import AdapterSection
from ms4_train.errors import AdapterError


@pytest.mark.parametrize("preset", ["vision", "language", "all"])
def test_another_tower_is_another_base_for_what_adapts_the_vision(tmp_path, preset):
    model, section = tiny_multimodal(), AdapterSection(r=2, preset=preset)
    attach(model, section)
    base = {"config": model.config, "vision": model.vision_config, "base_path": "base", "base_fingerprint": "sha256:text+sha256:tower"}
    save_adapter(adapter_tensors(model), tmp_path / "adapter", section=section, **base)
    load_adapter(tiny_multimodal(), tmp_path / "adapter", base_fingerprint="sha256:text+sha256:tower")
    if preset == "language":
        load_adapter(tiny_multimodal(), tmp_path / "adapter", base_fingerprint="sha256:text+sha256:other")
    else:
        with pytest.raises(AdapterError, match="trained on another model"):
            load_adapter(tiny_multimodal(), tmp_path / "adapter", base_fingerprint="sha256:text+sha256:other")
    with pytest.raises(AdapterError, match="trained on another model"):
        load_adapter(tiny_multimodal(), tmp_path / "adapter", base_fingerprint="sha256:other+sha256:tower")
