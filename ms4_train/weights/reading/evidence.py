"""How the tensors of a checkpoint are stored, decided from names and types in the headers, never from the folder's name.

Exercise it: ``pytest tests/ms4_train/weights/reading/test_evidence.py``.

Not covered: whether the tensors are complete (``header_check``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ms4_train.errors import WeightsError
from ms4_train.weights.layouts.detect import Family
from ms4_train.weights.layouts.tables import Encoding, HfNames, Layout
from ms4_train.weights.reading.stored_files import StoredTensor

_NO_FIX = "use the BF16, FP8 or NVFP4 files of the model."

# Endings of tensors that only a quantisation not read here has -> its name.
_FOREIGN = {
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".nested_absmax": "bitsandbytes",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes",
    ".SCB": "bitsandbytes (int8)",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".g_idx": "GPTQ",
    ".weight_shape": "compressed-tensors' packed integers",
    ".weight_zero_point": "compressed-tensors' integers",
    "_blocks": "MXFP4",
    ".weight_scale_2": "ModelOpt's NVFP4",
}
_FOREIGN_TYPES = {"F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "I8", "I32", "F4", "F6_E2M3", "F6_E3M2"}
_FP8_SCALES = (".qscale_weight", ".weight_scale_inv", "_proj_scale_inv", ".activation_scale", "_proj_activation_scale")
_NVFP4_NAMES = (".weight_packed", ".weight_global_scale", ".input_global_scale")
_VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_VISION_NATIVE = ("vision_encoder.", "vision_language_adapter.", "patch_merger.", "pre_mm_projector_norm.")
_EXTRAS = (".q_fake_quantizer.qscale_act", ".k_fake_quantizer.qscale_act", ".v_fake_quantizer.qscale_act", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Evidence:
    """What headers say of a layout. ``witness`` is a tensor that shows the encoding, None for ``plain``."""

    encoding: Encoding
    witness: str | None
    hf_names: HfNames

    def layout(self, family: Family) -> Layout:
        """The layout of files of that family."""
        if family == "hf":
            return Layout.HF if self.encoding == "plain" else Layout.HF_FP8
        return {"plain": Layout.NATIVE, "fp8": Layout.NATIVE_FP8, "nvfp4": Layout.NVFP4}[self.encoding]


def is_extra(name: str) -> bool:
    """Whether a stored tensor is a known addition that holds no weight: KV-cache scales of older revisions, rotary tables."""
    return name.endswith(_EXTRAS)


def is_vision(name: str) -> bool:
    """Whether a stored tensor, of any layout, belongs to the vision tower, the patch merger or the projector."""
    return name.startswith(_VISION + _VISION_NATIVE)


def weigh_evidence(stored: Mapping[str, StoredTensor], family: Family) -> Evidence:
    """Decide from names and types how a checkpoint is stored.

    Raises:
        WeightsError: a quantisation that is not read, by name; or an EAGLE head, which is no model.
    """
    foreign = foreign_tensor(stored)
    if foreign is not None:
        name, what = foreign
        raise WeightsError(what, file=stored[name].file, key=name, fix=_NO_FIX)
    encoding: Encoding = "plain"
    witness = next((name for name in stored if name.endswith(_NVFP4_NAMES)), None)
    if witness is not None:
        encoding = "nvfp4"
    else:
        witness = next((name for name, item in stored.items() if item.info.dtype == "F8_E4M3"), None)
        witness = witness or next((name for name in stored if name.endswith(_FP8_SCALES)), None)
        encoding = "plain" if witness is None else "fp8"
    if family == "hf" and encoding == "nvfp4" and witness is not None:
        what = "is NVFP4 under Hugging Face names, which is not read."
        raise WeightsError(what, file=stored[witness].file, key=witness, fix="use the NVFP4 files with Mistral-native names.")
    return Evidence(encoding, witness, _hf_names(stored))


def foreign_tensor(stored: Mapping[str, StoredTensor]) -> tuple[str, str] | None:
    """The first tensor that belongs to something not read here, and in words to what."""
    has_packed = False
    for name, item in stored.items():
        info = item.info
        if name.startswith("eagle_linear."):
            return name, "belongs to an EAGLE draft head, which is not a model of its own."
        for ending, scheme in _FOREIGN.items():
            if name.endswith(ending):
                return name, f"belongs to a checkpoint quantised by {scheme}, which is not read."
        if info.dtype in _FOREIGN_TYPES and not is_extra(name):
            return name, f"has type {info.dtype}, which is not read."
        if name.endswith(".weight_scale_inv") and sum(size > 1 for size in info.shape):
            return name, f"has shape {list(info.shape)}: FP8 in blocks, which is not read."
        if name.endswith("_proj_scale_inv") and sum(size > 1 for size in info.shape) > 1:
            return name, f"has shape {list(info.shape)}: FP8 in blocks, which is not read."
        has_packed = has_packed or name.endswith(".weight_packed")
    if not has_packed:
        for name in stored:
            if name.endswith((".weight_scale", ".input_scale")):
                return name, "belongs to a checkpoint quantised by compressed-tensors without FP4, which is not read."
    return None


def _hf_names(names: Iterable[str]) -> HfNames:
    found = HfNames.TEXT
    for name in names:
        if name.startswith("language_model."):
            return HfNames.DISK
        if name.startswith(("model.language_model.", "model.vision_tower.")):
            found = HfNames.TRANSFORMERS
    return found
