"""What a run is about to do, said before its first step: what is trained, on how much, for how long.

A run that would train nothing is refused here, by ``ms4_train.adapters`` (a target without a match) and by ``ms4_train.data`` (no loss).

Exercise it: ``pytest tests/ms4_train/training/test_announce.py``, or ``ms4 train FILE.yaml --dry-run``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ms4_train.adapters import AttachReport, TargetRow
from ms4_train.config.schema import ParallelSection, TrainingSection
from ms4_train.data import Survey
from ms4_train.errors import TrainingError
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.model.quantised import logical_weights
from ms4_train.parallel import Mesh
from ms4_train.training.schedule import warmup_steps

_NUMBER = re.compile(r"\.\d+(?=\.)")


@dataclass(frozen=True)
class TrainedGroup:
    """Parameters of one kind over all layers."""

    name: str
    tensors: int
    parameters: int


@dataclass(frozen=True)
class TrainedParameters:
    """What the optimizer will move, over all ranks."""

    groups: tuple[TrainedGroup, ...]
    trainable: int
    total: int
    expert_shares: int = 1
    """Over how many ranks the experts of the counted model are spread."""

    @classmethod
    def of_model(cls, model: Mistral4ForCausalLM) -> TrainedParameters:
        """Count parameters, layers of one kind together. A stack of this rank's experts counts with all experts.

        Raises:
            TrainingError: no parameter is trained.
        """
        groups: dict[str, list[int]] = {}
        total, shares = 0, 1
        for weight in logical_weights(model):
            size = weight.shape.numel()
            if len(weight.shape) == 3:
                shares = model.config.n_routed_experts // weight.shape[0]
                size *= shares
            total += size
            if weight.trained:
                groups.setdefault(_NUMBER.sub(".*", weight.name), []).append(size)
        if not groups:
            raise TrainingError(
                "no parameter of the model is trained.", key="adapter", fix="name at least one target, or train the full model."
            )
        rows = tuple(TrainedGroup(name, len(sizes), sum(sizes)) for name, sizes in groups.items())
        return cls(rows, sum(row.parameters for row in rows), total, shares)


@dataclass(frozen=True)
class RunLength:
    """How long a run is. ``rows_per_epoch`` is None where a streaming source does not say; ``epoch_steps`` means nothing then."""

    total_steps: int
    first_step: int
    epoch_steps: int
    rows_per_step: int
    rows_per_epoch: int | None
    max_length: int


def ranks_said(mesh: Mesh, section: ParallelSection, num_experts: int) -> Iterator[str]:
    """The lines that say how the ranks share the work; none for one process."""
    if mesh.world_size == 1:
        return
    yield "ranks:"
    size = mesh.expert_parallel_size
    experts = (
        f"{num_experts // size:,} of a layer's {num_experts:,} experts on each" if size > 1 else f"all {num_experts:,} experts on each"
    )
    copies = mesh.expert_data_parallel_size
    yield f"  {mesh.world_size:,} on {mesh.device.type}; {experts}" + (f", {copies:,} copies of each" if size > 1 and copies > 1 else "")
    moved = [
        name for name, place in (("optimizer", section.offload_optimizer), ("parameters", section.offload_parameters)) if place == "cpu"
    ]
    yield f"  ZeRO {section.zero_stage}" + (f"; {' and '.join(moved)} on the CPU" if moved else "")


def announcement(
    trained: TrainedParameters, attached: AttachReport | None, survey: Survey, length: RunLength, training: TrainingSection
) -> Iterator[str]:
    """The lines to print, without markup."""
    yield "trained parameters:"
    if attached is None:
        yield from _table((row.name, _count(row.tensors, "tensor"), f"{row.parameters:,}") for row in trained.groups)
    else:
        # The report counts what this rank holds.
        sizes = [row.parameters * (trained.expert_shares if row.kind == "experts" else 1) for row in attached.rows]
        rows = zip(attached.rows, sizes, strict=True)
        yield from _table((_name(row), _count(row.modules, "module"), f"{size:,}") for row, size in rows)
    yield f"  {trained.trainable:,} of {trained.total:,} parameters ({trained.trainable / trained.total:.3%})"
    yield "data:"
    yield from (f"  {line}" for line in survey.lines())
    yield "steps:"
    yield f"  {_steps(length)}"
    tokens = length.rows_per_step * length.max_length
    yield f"  {_count(length.rows_per_step, 'packed row')} per step, at most {tokens:,} tokens"
    yield f"  learning rate {training.learning_rate:g}, {training.lr_scheduler_type}{_warmup(training, length.total_steps)}"


def _name(row: TargetRow) -> str:
    """The target, and how many of its modules belong to vision where it matches both; ends of names are the same in both towers."""
    whole = ", trained whole" if row.kind == "saved" else ""
    return f"{row.target}{whole}" + (f" ({row.vision:,} of them in the vision)" if 0 < row.vision < row.modules else "")


def _steps(length: RunLength) -> str:
    left = length.total_steps - length.first_step
    text = _count(length.total_steps, "step")
    if left <= 0:
        return f"all {text} are done; only the result is written again. Raise training.max_steps or num_train_epochs to go on."
    if length.first_step:
        text = f"{left:,} of {text}, resumed after step {length.first_step:,}"
    if length.rows_per_epoch:
        epochs = length.total_steps * length.rows_per_step / length.rows_per_epoch
        text += f"; {_count(length.rows_per_epoch, 'packed row')} per epoch, {epochs:.2f} epochs in all"
    return text


def _warmup(training: TrainingSection, total: int) -> str:
    steps = warmup_steps(training, total)
    if steps >= total:
        return f", warm-up over {_count(steps, 'step')}: THE RUN ENDS BEFORE THIS RATE IS REACHED"
    return f", warm-up over {_count(steps, 'step')}" if steps else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _table(rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Indented columns: text left, numbers right."""
    cells = list(rows)
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    for name, count, parameters in cells:
        yield f"  {name:<{widths[0]}}  {count:>{widths[1]}}  {parameters:>{widths[2]}} parameters"
