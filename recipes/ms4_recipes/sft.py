"""Supervised fine-tuning: rows and a model in, a tuned model or a LoRA adapter out. ``ms4 train FILE.yaml`` runs it for ``recipe: sft``.

One process trains on a plain device; under torchrun the same lines train on DeepSpeed with expert parallelism.
Exercise it: ``ms4 train configs/train/tiny_full.yaml``, or ``pytest tests/recipes/ms4_recipes/test_sft.py``.

What lies in ``output_dir`` afterwards: ``checkpoints/`` (run state), ``metrics.jsonl``, and ``model/`` (a Hugging Face folder with its
tokenizer) or ``adapter/`` (PEFT files).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from ms4_recipes.export import export
from ms4_recipes.kernel_log import kernel_choices_shown
from ms4_recipes.memory_notice import memory_notice
from ms4_recipes.output_folder import output_folder
from ms4_recipes.prepare_model import PreparedModel, prepare_model
from ms4_recipes.reading_status import reading_shown
from ms4_train.chat import ChatTokenizer
from ms4_train.checkpoint import (
    RunStateSaver,
    SavedRun,
    check_same_run,
    checkpoint_bytes,
    find_saved_run,
    other_conditions,
    places,
    require_room,
    restart_after,
    run_identity,
    seed_everything,
)
from ms4_train.checkpoint.folders import prune
from ms4_train.config.schema import AdapterSection, SftRun
from ms4_train.data import PackedBatch, Survey, TrainLoader, build_eval_batches, build_loader, prepare
from ms4_train.errors import ConfigError
from ms4_train.model import Mistral4ForCausalLM
from ms4_train.parallel import Mesh, TrainEngine, init_mesh, make_engine, progress, shard_experts
from ms4_train.parallel.watch import watched
from ms4_train.tracking import Trackers, make_trackers
from ms4_train.training import (
    FlopCounter,
    RunLength,
    Speedometer,
    StopSignals,
    TrainedParameters,
    TrainingRun,
    announcement,
    peak_flops,
    ranks_said,
    steps_per_epoch,
    total_steps,
    train,
)
from ms4_train.training.forward import require_vision
from ms4_train.training.same_start import require_same_inputs, require_same_start
from ms4_train.untrusted import read_bytes
from ms4_train.weights import base_fingerprint, read_config

if TYPE_CHECKING:
    from ms4_recipes.answer_tasks import TaskEvaluation

_LOG = logging.getLogger(__name__)
MAX_TOKENIZER_BYTES = 64 << 20


def run(config: SftRun, *, dry_run: bool = False) -> Path:
    """Train as ``config`` says, going on from run state in ``output_dir`` where there is some.

    Args:
        config: the whole run.
        dry_run: say what would be trained, check everything that can be checked, and stop before the first step.

    Returns:
        The folder of the tuned model or adapter; ``output_dir`` for a dry run.

    Raises:
        MS4Error: whatever is wrong with the files, the configuration or the machine.
        TrainingInterruptedError: a signal ended the run; its run state is saved.
    """
    with StopSignals() as stop:
        num_experts = read_config(config.model.path).n_routed_experts
        mesh = init_mesh(config.parallel, rehearse=dry_run, num_experts=num_experts)
        try:
            with watched(mesh, timeout_seconds=config.parallel.timeout_seconds):
                require_same_start(mesh, config)
                return _run(config, mesh, stop, dry_run=dry_run)
        finally:
            mesh.close()


def _run(config: SftRun, mesh: Mesh, stop: StopSignals, *, dry_run: bool) -> Path:
    with contextlib.nullcontext() if dry_run else output_folder(config, mesh):
        make_deterministic(config.seed)
        progress.at("load", 0)
        plan = prepare_run(config, mesh, look_for_state=not dry_run)
        announce_run(plan)
        if dry_run:
            return Path(config.output_dir)
        console = Console(soft_wrap=True, highlight=False, quiet=not mesh.is_main)
        with kernel_choices_shown(console):
            engine = train_run(plan, stop)
        progress.at("export")
        folder = export(plan, engine)
        console.print(f"written: {folder}", markup=False)
        return folder


@dataclass
class Plan:
    """Everything that is known before the first step."""

    config: SftRun
    mesh: Mesh
    tokenizer: ChatTokenizer
    survey: Survey
    loader: TrainLoader
    eval_batches: Sequence[PackedBatch]
    base_fingerprint: str
    prepared: PreparedModel
    trained: TrainedParameters
    flops: FlopCounter
    identity: dict[str, Any]
    saved: SavedRun | None
    length: RunLength
    tasks: TaskEvaluation | None

    @property
    def model(self) -> Mistral4ForCausalLM:
        """The model, with its adapter if it has one."""
        return self.prepared.model

    @property
    def adapter(self) -> AdapterSection | None:
        """The adapter that is trained; None where every parameter is."""
        return self.prepared.adapter

    @property
    def checkpoints(self) -> Path:
        """Folder of the run state."""
        return Path(self.config.output_dir) / "checkpoints"

    @property
    def state_bytes(self) -> int:
        """Disk space of one checkpoint."""
        return checkpoint_bytes(self.trained.trainable)


def prepare_run(config: SftRun, mesh: Mesh, *, look_for_state: bool) -> Plan:
    """Read the rows, the model and the last run state. Rows come first: a bad one should be found before a large model is read.

    Raises:
        ConfigError: validation is asked for without validation rows, or an epoch of a stream without its length.
        MS4Error: a file that cannot be used.
    """
    training = config.training
    sizes = read_config(config.model.path)
    tokenizer = ChatTokenizer.of_model(config.model.path, config.model.tokenizer)
    tokenizer.check_model(sizes.vocab_size)
    with reading_shown(Console(stderr=True, quiet=not mesh.is_main)) as shown:
        rows = prepare(config.data, tokenizer, progress=shown)
    rows.require_usable()
    place: dict[str, Any] = {"rank": mesh.rank, "world_size": mesh.world_size, "prepared": rows}
    loader = build_loader(config.data, tokenizer, batch_size=training.per_device_train_batch_size, seed=config.seed, **place)
    eval_batches: Sequence[PackedBatch] = []
    if training.eval_strategy != "no":
        eval_batches = build_eval_batches(
            config.data, tokenizer, batch_size=training.per_device_eval_batch_size, max_rows=training.eval_max_rows, **place
        )
        if not eval_batches:
            tried = config.data.validation_fraction > 0 and not config.data.validation
            # Rows that ask the same stay on one side, so of few questions a small share may be none.
            why = f": of {rows.survey.rows_read:,} rows none fell into {config.data.validation_fraction:g} of them" if tried else ""
            raise ConfigError(
                f"is {training.eval_strategy}, but there are no validation rows{why}.",
                key="training.eval_strategy",
                fix="raise data.validation_fraction, or set no." if tried else "set data.validation or data.validation_fraction.",
            )
    length = run_length(config, loader, mesh)

    base = base_fingerprint(config.model.path)
    read = {"base_fingerprint": base, "tokenizer_sha256": file_sha256(tokenizer.path)}
    require_same_inputs(mesh, **read, rows=rows, loader=loader, length=length, init_from=config.adapter and config.adapter.init_from)
    # Of a stream only the first rows were looked at: images may come later.
    images = rows.has_images or (rows.is_streaming and config.model.vision != "skip")
    if mesh.is_main:
        for line in memory_notice(config, mesh, images=images, whole=not look_for_state):
            Console(soft_wrap=True, highlight=False).print(line, markup=False)
    prepared = prepare_model(config, mesh, base, images=images)
    if rows.has_images:
        require_vision(prepared.model, tokenizer)

    identity = run_identity(config, **read)
    saved = None
    if look_for_state:
        saved = find_saved_run(Path(config.output_dir) / "checkpoints", training.resume_from_checkpoint, mesh)
    if saved:
        for change in check_same_run(saved.state["identity"], identity, folder=saved.folder):
            _LOG.warning("the resumed run changes %s.", change)
        if mesh.is_main:
            for line in other_conditions(saved.state, config, places(mesh, config.parallel.zero_stage)):
                _LOG.warning("the run was saved under other conditions: %s", line)
    tasks = None
    if config.evaluation is not None:
        from ms4_recipes.answer_tasks import TaskEvaluation

        tasks = TaskEvaluation(config, config.evaluation, prepared.model, tokenizer, run=identity["sha256"], mesh=mesh)
    return Plan(
        config=config,
        mesh=mesh,
        tokenizer=tokenizer,
        survey=rows.survey,
        loader=loader,
        eval_batches=eval_batches,
        base_fingerprint=base,
        prepared=prepared,
        trained=TrainedParameters.of_model(prepared.model),
        flops=FlopCounter.of_model(prepared.model),
        identity=identity,
        saved=saved,
        length=dataclasses.replace(length, first_step=saved.step if saved else 0),
        tasks=tasks,
    )


def announce_run(plan: Plan) -> None:
    """Say what will happen, and refuse what cannot go well.

    Raises:
        StorageError: two checkpoints would not fit on the disk.
    """
    console, training = Console(soft_wrap=True, highlight=False, quiet=not plan.mesh.is_main), plan.config.training
    if plan.prepared.base_weights is not None:
        console.print(plan.prepared.base_weights, markup=False)
    for line in ranks_said(plan.mesh, plan.config.parallel, plan.model.config.n_routed_experts):
        console.print(line, markup=False)
    for line in announcement(plan.trained, plan.prepared.attached, plan.survey, plan.length, training):
        console.print(line, markup=False)
    length = plan.length
    if training.save_strategy != "no" and plan.mesh.is_main and length.first_step < length.total_steps:
        short = require_room(plan.checkpoints, plan.state_bytes, done=length.first_step, keep=training.save_total_limit)
        if short is not None:
            _LOG.warning("%s", short)


def train_run(plan: Plan, stop: StopSignals) -> TrainEngine:
    """The engine, the saved state, the trackers, and the loop."""
    config, mesh, saved, length = plan.config, plan.mesh, plan.saved, plan.length
    training, seed = config.training, config.seed
    shard_experts(plan.model, mesh)
    engine = make_engine(plan.model, mesh, training=training, parallel=config.parallel)
    peak = config.tracking.peak_flops or peak_flops(mesh.device, next(plan.model.parameters()).dtype)
    trackers = Trackers()
    is_finished = length.first_step >= length.total_steps
    if mesh.is_main and not is_finished:  # a finished run's metrics stay as they are
        trackers = make_trackers(
            config.tracking,
            Path(config.output_dir),
            config.model_dump(mode="json"),
            total_steps=length.total_steps,
            step=length.first_step,
            resumed=saved.state["tracking"] if saved else None,
            go_on=training.on_save_error == "continue",
        )

    if plan.tasks is not None:
        plan.tasks.save_best = lambda folder: export(plan, engine, folder)
        plan.tasks.whole_weights = engine.whole_weights
        plan.tasks.should_stop = lambda: stop.received != 0

    saver = make_saver(plan, engine)

    try:
        # The last thing before the loop, so that nothing draws random numbers in between.
        if saved is None:
            seed_everything(seed, mesh.rank)
        else:
            plan.loader.load_state_dict(saved.state["loader"])
            saved.restore(engine, seed=seed)
        if is_finished:
            if mesh.is_main and saver is not None:
                prune(plan.checkpoints, training.save_total_limit)  # where it died between its last commit and this
            return engine
        if mesh.is_main:
            restart_after(plan.checkpoints, length.first_step)
        with stop.finishing(), saver or contextlib.nullcontext():
            results = train(
                TrainingRun(
                    section=training,
                    engine=engine,
                    model=plan.model,
                    loader=plan.loader,
                    eval_batches=plan.eval_batches,
                    tracker=trackers,
                    total_steps=length.total_steps,
                    epoch_steps=length.epoch_steps if length.rows_per_epoch else 0,
                    flops=plan.flops,
                    speed=Speedometer(peak),
                    saver=saver,
                    state=lambda: {"identity": plan.identity, "loader": plan.loader.state_dict(), "tracking": trackers.state()},
                    answer_tasks=plan.tasks,
                    answer_every=config.evaluation.steps if config.evaluation else 0,
                    output=Path(config.output_dir),
                    seed=seed,
                ),
                stop,
                first_step=length.first_step,
            )
        trackers.summary(results)
    finally:
        trackers.close()
        plan.loader.close()
        if plan.tasks is not None:
            plan.tasks.close()
    return engine


def make_saver(plan: Plan, engine: TrainEngine) -> RunStateSaver | None:
    """Writes run state; None where the run saves none."""
    config, training = plan.config, plan.config.training
    if training.save_strategy == "no":
        return None
    return RunStateSaver(
        plan.checkpoints,
        engine,
        expected_bytes=plan.state_bytes,
        keep=training.save_total_limit,
        config=config.model_dump(mode="json"),
        zero_stage=config.parallel.zero_stage,
        background=training.save_async,
        go_on=training.on_save_error == "continue",
    )


def make_deterministic(seed: int) -> None:
    """Seed everything, and let the same run on the same machine give the same bits.

    Not covered: another number of threads, another machine, another version of torch.
    """
    seed_everything(seed, rank=0)  # alike on all ranks, so that they initialise adapters alike
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # it guards against a defect we test for


def run_length(config: SftRun, loader: TrainLoader, mesh: Mesh) -> RunLength:
    """How many steps the run has, from its beginning.

    Raises:
        ConfigError: the rows stream, so that nobody knows how long an epoch is, and a key needs to know.
    """
    training = config.training
    rows_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * mesh.world_size
    rows = loader.rows_per_epoch
    if rows is None:
        needing = {"max_steps": -1, "eval_strategy": "epoch", "save_strategy": "epoch"}
        for key, value in needing.items():
            if getattr(training, key) == value:
                raise ConfigError(
                    f"is {value}, but a streaming source does not say how long an epoch is.",
                    key=f"training.{key}",
                    fix="set max_steps, and steps as the strategies.",
                )
    epoch_steps = steps_per_epoch(rows or rows_per_step, rows_per_step)
    return RunLength(total_steps(training, epoch_steps), 0, epoch_steps, rows_per_step, rows, config.data.max_length)


def file_sha256(path: Path) -> str:
    """Identity of a tokenizer file, by content."""
    return hashlib.sha256(read_bytes(path, max_bytes=MAX_TOKENIZER_BYTES)).hexdigest()
