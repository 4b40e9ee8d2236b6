"""axolotl's base model and its precision -> ``model``.

Exercise it: ``pytest tests/ms4_train/config/importing/test_axolotl_model.py``.
"""

from __future__ import annotations

from ms4_train.config.importing.draft import Draft
from ms4_train.errors import ConfigError

RELEASE = "Mistral-Small-4-119B-2603"
_OFFICIAL = {"FP8": f"mistralai/{RELEASE}", "NVFP4": f"mistralai/{RELEASE}-NVFP4"}


def translate_model(draft: Draft) -> None:
    """``base_model``, ``load_in_4bit``, ``bf16`` and their like.

    Raises:
        ConfigError: there is no base model.
    """
    base = draft.text("base_model")
    if base is None:
        raise ConfigError("this key is missing.", file=draft.document.file, line=1, key="base_model", fix="name the base model.")
    if _is_hub_name(base) and "small-4" not in base.lower():
        draft.warn(f"base_model: {base[:80]} does not look like Mistral Small 4, the one model that is trained here.")
    held = _quantised_base(draft)
    if held is None:
        _plain_base(draft, base)
    else:
        _frozen_base(draft, base, held)
    _dtype(draft)


def _is_hub_name(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/", "~"))


def _plain_base(draft: Draft, base: str) -> None:
    folder = f"models/{base.rpartition('/')[2]}" if _is_hub_name(base) else base
    draft.put("base_model", ("model", "path"), folder)
    if _is_hub_name(base):
        draft.comment(("model", "path"), f"Get it with: ms4 pull {base} {folder}")
    if RELEASE in base:
        draft.comment(
            ("model", "path"),
            f"No copy in BF16 is needed: the official FP8 files, {_OFFICIAL['FP8']}, are dequantised when they are read.",
        )


def _quantised_base(draft: Draft) -> str | None:
    """How a quantised base is to be held: FP8, NVFP4, or None."""
    four = draft.boolean("load_in_4bit") or draft.text("adapter") == "qlora"
    eight = draft.boolean("load_in_8bit")
    return "NVFP4" if four else "FP8" if eight else None


def _frozen_base(draft: Draft, base: str, held: str) -> None:
    keys = [key for key in ("load_in_4bit", "load_in_8bit", "quantize_moe_experts") if draft.boolean(key) is not None]
    source = ", ".join(keys) or "adapter"
    if RELEASE in base:
        official = _OFFICIAL[held]
        folder = f"models/{official.rpartition('/')[2]}"
        draft.put("base_model", ("model", "path"), folder, f"the official {held} files in the place of {base}")
        draft.comment(("model", "path"), f"Get it with: ms4 pull {official} {folder}")
        if held == "NVFP4":
            other = _OFFICIAL["FP8"]
            draft.comment(("model", "path"), f"The FP8 files, {other}, are finer and take 120 GB where NVFP4 takes 70.")
    else:
        draft.put("base_model", ("model", "path"), f"models/{base.rpartition('/')[2]}" if _is_hub_name(base) else base)
        draft.comment(("model", "path"), "A folder in FP8, which `ms4 weights convert --to native-fp8` makes, or in NVFP4.")
        draft.warn(f"{source}: the base must be in {held} or FP8 files to be held quantised; weights in BF16 are read as they are.")
    draft.put(source, ("model", "dequantize"), False, f"frozen {held} base")
    draft.comment(
        ("model", "dequantize"),
        f"bitsandbytes is not used: the base stays frozen in the codes and scales of its {held} files, routed experts included.",
    )
    if held == "NVFP4":
        draft.warn(
            f"{source}: bitsandbytes' NF4 kernels count elements in signed 32 bits, and a layer's gate_up_proj has exactly 2^31 of "
            "them: users report that the original fails there. Here NVFP4 files take its place, and values differ from NF4's."
        )


def _dtype(draft: Draft) -> None:
    for key in ("fp16", "float16"):
        if draft.value((key,)):
            draft.put(key, ("model", "dtype"), "bfloat16", "the experts' activations exceed what fp16 can hold")
            return
    for key in ("bf16", "bfloat16"):
        if draft.value((key,)) == "auto" or (chosen := draft.boolean(key)) is True:
            draft.put(key, ("model", "dtype"), "bfloat16")
            return
        if chosen is False:
            draft.put(key, ("model", "dtype"), "float32")
            return
    if draft.boolean("float32"):
        draft.put("float32", ("model", "dtype"), "float32")
