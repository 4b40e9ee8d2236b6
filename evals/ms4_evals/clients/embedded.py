"""Loads the model of a ``model:`` section, with its adapter and tokenizer, as a client on the engine of this process.

torch is imported when a model is loaded, not before: an evaluation against a server needs none.
Exercise it: ``pytest tests/evals/ms4_evals/clients/test_embedded.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms4_evals.clients.engine import EngineClient
from ms4_evals.identity import content_hash, file_hash
from ms4_train.config.eval_tasks import EngineSection
from ms4_train.config.schema import ModelSection
from ms4_train.errors import MissingDependencyError

if TYPE_CHECKING:
    from rich.console import Console

    from ms4_train.chat import ChatTokenizer
    from ms4_train.model import Mistral4ForCausalLM
    from ms4_train.parallel import Mesh

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def open_embedded(section: ModelSection, engine: EngineSection, console: Console | None = None) -> EngineClient:
    """The model as a client.

    Raises:
        MS4Error: as ``load_model_under_test``.
    """
    model, tokenizer, identity = load_model_under_test(section, console)
    return EngineClient(model, tokenizer, identity=identity, max_batch_size=engine.max_batch_size, max_context=engine.max_context)


def load_model_under_test(
    section: ModelSection, console: Console | None = None, *, mesh: Mesh | None = None
) -> tuple[Mistral4ForCausalLM, ChatTokenizer, dict[str, Any]]:
    """Model with its adapter, tokenizer, and what identifies them; says on ``console`` how quantised weights are held.

    Weights that are kept quantised have the values that they have dequantised to the same type, so they identify the same model.
    With a ``mesh`` each of its ranks reads its experts only, onto its device. Nothing in it is collective.

    Raises:
        MissingDependencyError: torch is not there.
        ParallelError: the experts cannot be divided over the ranks.
        MS4Error: a file is missing, malformed, or belongs to another model.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("the engine needs torch.", key="model", fix="install torch, or name a server: endpoint.") from error

    from ms4_train.adapters import load_adapter
    from ms4_train.chat import ChatTokenizer
    from ms4_train.parallel import Mesh, progress, shard_experts
    from ms4_train.weights import base_fingerprint, load_model, open_checkpoint, read_config
    from ms4_train.weights.reading.base_weights import base_weights_line

    mesh = mesh or Mesh()
    fingerprint = base_fingerprint(section.path)
    tokenizer = ChatTokenizer.of_model(section.path, section.tokenizer)
    expert_range = mesh.expert_range(read_config(section.path).n_routed_experts) if mesh.expert_parallel_size > 1 else None
    model = load_model(
        section.path,
        dtype=getattr(torch, section.dtype),
        softmax_scale=section.softmax_scale,
        experts_backend=section.experts_backend,
        expert_range=expert_range,
        dequantise=section.dequantizes(default=True),
        progress=progress.loaded,
    )
    layout = open_checkpoint(section.path).layout
    line = base_weights_line(layout, model)
    if console is not None and line is not None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    identity: dict[str, Any] = {
        "weights": fingerprint,
        "tokenizer": file_hash(tokenizer.path),
        "dtype": section.dtype,
        "softmax_scale": model.config.softmax_scale,
        "adapter": None,
    }
    if layout.encoding != "plain" and section.dtype != "bfloat16":
        identity["encoding"] = layout.encoding  # finer values than those of a bf16 conversion, which has the same fingerprint
    if section.adapter is not None:
        load_adapter(model, section.adapter, base_fingerprint=fingerprint)
        identity["adapter"] = content_hash([file_hash(Path(section.adapter) / name) for name in _ADAPTER_FILES])
    shard_experts(model, mesh)
    return (model if mesh.world_size == 1 else model.to(mesh.device)).eval(), tokenizer, identity


def default_label(section: ModelSection) -> str:
    """Name of the model's folder, and of the adapter's; a folder named ``model`` or ``adapter`` goes by its parent too."""

    def name(folder: str) -> str:
        path = Path(folder).resolve()
        return f"{path.parent.name}/{path.name}" if path.name in ("model", "adapter") else path.name

    return name(section.path) if section.adapter is None else f"{name(section.path)} + {name(section.adapter)}"
