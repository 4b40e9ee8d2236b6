"""What ``ms4 weights inspect`` shows, and ``ms4 model init`` and ``merge`` after their work: a checkpoint on one screen.

Exercise it: ``ms4 weights inspect FOLDER`` and ``pytest tests/ms4_train/cli/test_inspection.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ms4_train.model import VisionConfig
    from ms4_train.weights.layouts.detect import FamilyChoice
    from ms4_train.weights.layouts.pieces import ModelConfig
    from ms4_train.weights.reading.summary import Inspection

_LAYOUTS = {
    "hf": "Hugging Face, not quantised",
    "native": "Mistral-native, not quantised",
    "hf-fp8": "Hugging Face, FP8: a scale for each matrix, gate and up of an expert share one",
    "native-fp8": "Mistral-native, FP8: a scale for each matrix",
    "nvfp4": "Mistral-native names, NVFP4: a scale for each 16 columns, another for each matrix",
}
_NAMES = {"text": "names of a text model", "disk": "names as in the public repository", "transformers": "names as in transformers' classes"}
_SHOWN_COMPANIONS = 12


def inspect_folder(folder: Path, family: FamilyChoice = "auto") -> Inspection:
    """Inspect a checkpoint.

    Raises:
        WeightsError: there is no such folder.
    """
    from ms4_train.weights.layouts.detect import no_weights
    from ms4_train.weights.reading.summary import inspect_checkpoint

    if not folder.is_dir():
        raise no_weights(folder)
    return inspect_checkpoint(folder, family=family)


def inspection_json(found: Inspection) -> str:
    """One JSON object with everything that the screen says."""
    from dataclasses import asdict

    content = asdict(found) | {"parameters": found.parameters, "softmax_scale_decided_by": _softmax_source(found)}
    return json.dumps(content, indent=2)


def print_inspection(found: Inspection, title: str, console: Console | None = None) -> None:
    """Print a checkpoint's layout, types, parameters, configuration and problems."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    table = Table(title=f"{title} {found.folder}", title_justify="left", show_header=False, caption_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(found).items():
        table.add_row(name, value)
    console.print(table)
    if found.types:
        console.print(_types_table(found))
    print_problems(found, console)


def print_problems(found: Inspection, console: Console) -> None:
    """Print what is wrong, in red, or that nothing is."""
    if not found.problems:
        console.print("nothing is missing or wrong", style="green")
    for problem in found.problems:
        console.print(f"problem: {problem}", style="red", highlight=False, markup=False, soft_wrap=True)


def short_inspection(found: Inspection) -> str:
    """A checkpoint in one line."""
    types = ", ".join(found.types)
    return (
        f"{_layout_words(found)}; {_count(len(found.files), 'file')}, {_count(found.tensors, 'tensor')} ({types}), "
        f"{found.parameters:,} parameters, {found.num_bytes:,} bytes"
    )


def _rows(found: Inspection) -> dict[str, str]:
    rows = {"layout": _layout_words(found)}
    if len(found.families) > 1:
        other = "hf" if found.family == "native" else "native"
        rows["also there"] = f"files of the other family; --family {other} describes them"
    rows["files"] = f"{_count(len(found.files), 'weight file')}, {_count(found.tensors, 'tensor')}, {found.num_bytes:,} bytes"
    if found.config is not None:
        rows["parameters"] = (
            f"{found.parameters:,}: text {found.text_parameters:,}, vision {found.vision_parameters:,}; {_count(found.scales, 'scale')}"
        )
        rows["active per token"] = f"{found.active_parameters:,} ({found.active_parameters / found.text_parameters:.1%} of the text)"
        rows |= _config_rows(found.config)
        rows["softmax scale"] = f"{found.softmax_scale}, by {_softmax_source(found)}"
    rows["tokenizer"] = "tekken.json" if found.has_tokenizer else "none: there is no tekken.json"
    rows["sums"] = "SHA256SUMS; ms4 weights verify compares them" if found.has_sums else "none: there is no SHA256SUMS"
    more = f" and {len(found.companions) - _SHOWN_COMPANIONS} more" if len(found.companions) > _SHOWN_COMPANIONS else ""
    rows["beside them"] = ", ".join(found.companions[:_SHOWN_COMPANIONS]) + more or "nothing"
    if found.skipped:
        rows["skipped"] = f"{_count(len(found.skipped), 'tensor')} that hold no weights, such as {found.skipped[0]}"
    rows["fingerprint"] = found.fingerprint or "none, because of the problems"
    if found.vision_fingerprint is not None:
        rows["of the vision"] = found.vision_fingerprint
    return rows


def _config_rows(config: ModelConfig) -> dict[str, str]:
    text, vision = config.text, config.vision
    rope = text.rope_parameters
    return {
        "layers": f"{text.num_hidden_layers} of width {text.hidden_size:,}",
        "attention": f"{text.num_attention_heads} heads; ranks: query {text.q_lora_rank:,}, latent {text.kv_lora_rank:,}; widths: "
        f"{text.qk_nope_head_dim} + {text.qk_rope_head_dim} rotary, value {text.v_head_dim}",
        "experts": f"{text.n_routed_experts} of width {text.moe_intermediate_size:,}, {text.num_experts_per_tok} per token"
        f" + {text.n_shared_experts} shared",
        "vocabulary": f"{text.vocab_size:,}",
        "context": f"{text.max_position_embeddings:,}; YaRN factor {rope.factor:g} over {rope.original_max_position_embeddings:,}",
        "vision": _vision_words(vision),
    }


def _vision_words(vision: VisionConfig | None) -> str:
    if vision is None:
        return "none"
    merge = vision.spatial_merge_size
    return (
        f"{vision.num_hidden_layers} layers of width {vision.hidden_size:,}, patches of {vision.patch_size} pixels, "
        f"{merge} x {merge} patches make a token; not run for text"
    )


def _types_table(found: Inspection) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("type")
    for name in ("tensors", "parameters", "bytes"):
        table.add_column(name, justify="right")
    for name, count in found.types.items():
        table.add_row(name, f"{count.tensors:,}", f"{count.parameters:,}", f"{count.num_bytes:,}")
    return table


def _layout_words(found: Inspection) -> str:
    if found.layout is None:
        return "none that is read"
    names = f"; {_NAMES[found.names.value]}" if found.names is not None else ""
    return f"{found.layout.value}: {_LAYOUTS[found.layout.value]}{names}"


def _softmax_source(found: Inspection) -> str | None:
    from ms4_train.weights.reading.softmax_source import softmax_source

    return None if found.family is None or found.config is None else softmax_source(found.folder, found.family)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
