"""The configuration of a training run: one pydantic model per section of the YAML file.

Key names are Hugging Face ``TrainingArguments`` spellings where one exists. ``ms4 config schema`` prints the JSON Schema made from
these models; ``ms4_train.config.load`` reads YAML into them. Exercise it: ``pytest tests/ms4_train/config``.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from ms4_train.config.eval_tasks import TrainingEvaluation
from ms4_train.config.section import Section

NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ModelSection(Section):
    """Which model is trained or run."""

    path: str = Field(description="Folder of the model in any public layout: Hugging Face or Mistral-native, in BF16, FP8 or NVFP4.")
    tokenizer: str | None = Field(default=None, description="tekken.json file; default: <path>/tekken.json.")
    adapter: str | None = Field(default=None, description="Folder of a LoRA adapter to load on top of the model.")
    dtype: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="Type of parameters and activations.")
    softmax_scale: Literal["auto", "plain", "mscale"] = Field(
        default="auto",
        description="Attention scale: plain is 1/sqrt(head_dim); mscale is transformers' variant; auto reads the configuration.",
    )
    experts_backend: Literal["auto", "reference", "cpu", "triton"] = Field(
        default="auto", description="Implementation of the experts operation; triton needs a GPU."
    )
    vision: Literal["auto", "skip"] = Field(
        default="auto",
        description="auto reads tower and projector where the files have them; skip leaves them out: for text rows alone, less memory. "
        "Results carry the base's vision weights along.",
    )
    dequantize: bool | None = Field(
        default=None,
        description="Turn FP8 or NVFP4 weights into dtype when they are read (true), or keep them as codes and scales in less memory "
        "(false); default: keep them where an adapter is trained on them, else dequantise. Weights in BF16 ignore it.",
    )

    def dequantizes(self, *, default: bool) -> bool:
        """Whether quantised weights are dequantised when they are read; ``default`` is what null means to the program that asks."""
        return default if self.dequantize is None else self.dequantize


class FieldMap(Section):
    """Names of the columns that hold a row's parts, where they differ from ours."""

    messages: str = "messages"
    tools: str = "tools"
    reasoning_effort: str = "reasoning_effort"
    system_prompt: str | None = Field(default=None, description="Column with a system prompt to put before the messages.")
    images: str = Field(default="images", description="Column with the images that placeholders in the messages stand for.")


class DatasetSource(Section):
    """One source of rows: a local JSON lines or Parquet file, or a data set on the Hugging Face hub."""

    path: str = Field(description="A .jsonl, .json or .parquet file, or a hub name such as org/name.")
    name: str | None = Field(default=None, description="Configuration of a hub data set.")
    split: str = "train"
    revision: str | None = Field(default=None, description="Pinned revision of a hub data set.")
    streaming: bool = False
    weight: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Passes over this source per epoch; where any source streams, its relative rate."
    )
    reasoning_effort: Literal["none", "high"] | None = Field(default=None, description="Mode of rows that do not name one (default none).")
    system_prompt: str | None = Field(default=None, description="Text, or a file, of a system prompt for rows without one.")
    fields: FieldMap = FieldMap()


class ImagesSection(Section):
    """Images in rows: where they may come from, and what one may cost. An image beyond a bound makes its row a bad row."""

    root: str | None = Field(
        default=None, description="Folder that paths in rows start at and may not leave; default: the folder of the source's file."
    )
    max_bytes: PositiveInt = Field(default=32 << 20, description="Bytes of one encoded image.")
    max_pixels: PositiveInt = Field(default=12_500_000, description="Pixels of one image, by its header; half of it for WebP.")
    max_side: PositiveInt = Field(default=16_384, description="Pixels of an image's longer side.")
    allowed_hosts: list[str] = Field(default=[], description="Hosts that images may be fetched from; none by default.")
    workers: PositiveInt = Field(default=2, description="Processes per rank that decode images.")
    decode_seconds: Annotated[float, Field(gt=0)] = Field(default=10.0, description="Time for one image; its worker is then ended.")


class DataSection(Section):
    """Rows, loss masks and packing."""

    train: list[DatasetSource] = Field(min_length=1)
    validation: list[DatasetSource] = []
    validation_fraction: Fraction = Field(default=0.0, description="Share of the training rows held out when validation is empty.")
    max_length: PositiveInt = Field(default=2048, description="Tokens per packed row; longer rows are handled by overlong_rows.")
    packing: bool = Field(default=True, description="Put several documents into one row, isolated from each other.")
    overlong_rows: Literal["error", "skip"] = "error"
    invalid_rows: Literal["error", "skip"] = "error"
    system_prompt_name: str = Field(default="Mistral-Small-4-119B-2603", description="What {name} in a system prompt becomes.")
    system_prompt_date: str | None = Field(
        default=None,
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="What {today} in a system prompt becomes, e.g. 2026-01-31; {yesterday} is the day before.",
    )
    train_on_thinking: bool = Field(default=True, description="Whether thinking carries loss.")
    train_on_turns: Literal["all", "last"] = Field(default="all", description="Which assistant turns carry loss.")
    shuffle: bool = True
    images: ImagesSection = ImagesSection()


def _some_steps(steps: int) -> int:
    if steps == 0:
        raise ValueError("0 steps train nothing; write a positive number, or -1 for num_train_epochs")
    return steps


class TrainingSection(Section):
    """Optimizer, schedule and bookkeeping of the loop."""

    num_train_epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Annotated[int, Field(ge=-1), AfterValidator(_some_steps)] = Field(
        default=-1, description="Optimizer steps; -1 derives them from num_train_epochs."
    )
    per_device_train_batch_size: PositiveInt = Field(default=1, description="Packed rows per device and micro batch.")
    per_device_eval_batch_size: PositiveInt = 1
    gradient_accumulation_steps: PositiveInt = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    lr_scheduler_type: Literal["constant", "linear", "cosine", "cosine_with_min_lr", "warmup_stable_decay"] = "cosine"
    min_lr_ratio: Fraction = Field(default=0.0, description="Final share of learning_rate for cosine_with_min_lr and warmup_stable_decay.")
    warmup_ratio: Fraction = 0.0
    warmup_steps: int = Field(default=0, ge=0, description="Overrides warmup_ratio when positive.")
    weight_decay: NonNegative = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: NonNegative = Field(default=1.0, description="0 turns clipping off.")
    gradient_checkpointing: bool = False
    recompute_experts: bool = Field(
        default=False, description="Keep only the experts' inputs and compute their pre-activations again in the backward pass."
    )
    loss_chunk_tokens: PositiveInt = Field(default=1024, description="Tokens whose logits exist at once.")
    train_router: bool = Field(
        default=False,
        description="Train the routers too in full fine-tuning. Frozen by default, as balanced as they were; their load is logged.",
    )
    router_aux_loss_coef: NonNegative = Field(
        default=0.0, description="Factor of the load-balancing loss of the routers (Switch, mean over layers); 0 turns it off."
    )
    router_z_loss_coef: NonNegative = Field(
        default=0.0, description="Factor of the mean squared logsumexp of router logits, which keeps them small; 0 turns it off."
    )
    logging_steps: PositiveInt = 1
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    eval_steps: PositiveInt = 100
    eval_max_rows: PositiveInt | None = None
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    save_steps: PositiveInt = 500
    save_total_limit: Annotated[int, Field(ge=2)] = Field(
        default=2, description="Checkpoints that are kept. At least two: if the newest is damaged, the run goes on from the one before."
    )
    save_async: bool = Field(default=True, description="Write run state in the background, from a copy, while training goes on.")
    on_save_error: Literal["stop", "continue"] = Field(
        default="stop", description="What a disk that is full or fails does to the run: end it, or warn and go on to the next save."
    )
    resume_from_checkpoint: str = Field(default="auto", description="auto, never, or a checkpoint folder.")


Preset = Literal["attention", "attention+experts", "all", "vision", "language"]

_ATTENTION_TARGETS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "self_attn.o_proj")
_SHARED_TARGETS = ("shared_experts.gate_proj", "shared_experts.up_proj", "shared_experts.down_proj")
_STACK_TARGETS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
_VISION_TARGETS = (
    *("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    *("feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"),
    *("patch_merger.merging_layer", "multi_modal_projector.linear_1", "multi_modal_projector.linear_2"),
)
_LANGUAGE_TARGETS = (*_ATTENTION_TARGETS, *_SHARED_TARGETS)
PRESETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "attention": (_ATTENTION_TARGETS, ()),
    "attention+experts": (_LANGUAGE_TARGETS, _STACK_TARGETS),
    "language": (_LANGUAGE_TARGETS, _STACK_TARGETS),
    "vision": (_VISION_TARGETS, ()),
    "all": ((*_LANGUAGE_TARGETS, *_VISION_TARGETS), _STACK_TARGETS),
}
"""Named sets of targets: (target_modules, target_parameters)."""

_NEEDS_DATA = "it is computed from training data, and no data is read before an adapter is attached"
_REFUSED_STARTS = {
    "eva": _NEEDS_DATA,
    "corda": _NEEDS_DATA,
    "lora_ga": _NEEDS_DATA,
    "loftq": "it quantises the base anew; FP8 and NVFP4 files are used as they are here",
    "mica": "it keeps B frozen and trains A alone",
}


def _known_start(start: object) -> object:
    if start is True:
        return "default"  # PEFT's spelling
    if start is False:  # PEFT's too
        raise ValueError(
            "false is not offered: B stays random, so that the adapter changes the model before the first step; "
            "take default, gaussian, orthogonal, pissa or olora"
        )
    if isinstance(start, str) and start in _REFUSED_STARTS:
        raise ValueError(f"{start} is not offered: {_REFUSED_STARTS[start]}; take default, gaussian, orthogonal, pissa or olora")
    return start


def _plain_ends(pattern: dict[str, float]) -> dict[str, float]:
    for key in pattern:
        if re.fullmatch(r"\w+(\.\w+)*", key) is None:
            raise ValueError(f"{key!r} is not the end of a name; expressions are not evaluated, write names such as self_attn.o_proj")
    return pattern


_Ends = AfterValidator(_plain_ends)


class AdapterSection(Section):
    """A LoRA adapter; without this section every parameter is trained."""

    type: Literal["lora"] = "lora"
    r: PositiveInt = 16
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Of the input of adapters on linear modules.")
    use_rslora: bool = Field(default=False, description="Scale by alpha / sqrt(r) in the place of alpha / r.")
    use_dora: bool = Field(default=False, description="Train the length of each row beside its direction (DoRA); linear modules only.")
    init_lora_weights: Annotated[str, BeforeValidator(_known_start)] = Field(
        default="default",
        pattern=r"^(default|gaussian|orthogonal|pissa|pissa_niter_[1-9][0-9]?|olora)$",
        description="Where an adapter starts: default, gaussian, orthogonal, pissa, pissa_niter_N (faster, approximate) or olora.",
    )
    preset: Preset | None = Field(default=None, description="A named set of targets, in the place of target_modules and target_parameters.")
    target_modules: list[str] = Field(
        default=list(_ATTENTION_TARGETS),
        description="Ends of names of linear modules and embeddings; with * a pattern of the whole name. Each one must match.",
    )
    target_parameters: list[str] = Field(
        default=[],
        description="Ends of names of stacked expert parameters, e.g. mlp.experts.gate_up_proj, and of routers: mlp.gate.weight.",
    )
    exclude_modules: list[str] = Field(default=[], description="Modules left alone although a target matches them; written as targets are.")
    modules_to_save: list[str] = Field(
        default=[], description="Ends of names of modules that are trained whole and saved with the adapter, e.g. lm_head."
    )
    rank_pattern: Annotated[dict[str, PositiveInt], _Ends] = Field(default={}, description="Other ranks, by the end of a target's name.")
    alpha_pattern: Annotated[dict[str, Annotated[float, Field(gt=0)]], _Ends] = Field(
        default={}, description="Other values of lora_alpha, by the end of a target's name."
    )
    init_from: str | None = Field(default=None, description="Folder of an adapter to go on training.")

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, values: object) -> object:
        """A preset becomes its targets, so that whoever reads a section finds them in one place."""
        preset = values.get("preset") if isinstance(values, dict) else None
        if not isinstance(values, dict) or not isinstance(preset, str) or preset not in PRESETS:
            return values
        targets = dict(zip(("target_modules", "target_parameters"), map(list, PRESETS[preset]), strict=True))
        for key, expanded in targets.items():
            if values.get(key, expanded) != expanded:  # a resolved file holds both, in agreement
                raise ValueError(f"preset {preset} and {key} exclude each other; keep one of them")
        return values | targets

    @model_validator(mode="after")
    def _fits_together(self) -> AdapterSection:
        if not self.target_modules and not self.target_parameters and not self.modules_to_save:
            raise ValueError("target_modules and target_parameters are both empty; name at least one target")
        # A router's target ends in its parameter's name, "weight"; a stack's does not.
        routers_only = all(target.endswith("weight") for target in self.target_parameters)
        bare = "names a router: its weight is a bare parameter, and PEFT's wrapper of one takes no"
        if self.target_parameters and self.lora_dropout > 0:
            why = f"{bare} dropout" if routers_only else "names stacked experts (PEFT files cannot express it)"
            raise ValueError(f"lora_dropout must be 0 when target_parameters {why}")
        if self.target_parameters and self.use_dora:
            stacks = "names stacked experts: it needs the length of every expert's rows, and PEFT files cannot express it"
            raise ValueError(f"use_dora must be false when target_parameters {f'{bare} DoRA' if routers_only else stacks}")
        start = self.init_lora_weights
        if self.target_parameters and start.startswith(("pissa", "olora")):
            raise ValueError(f"init_lora_weights {start} decomposes whole matrices; it is not computed for target_parameters")
        if any(target.rpartition(".")[2].endswith("_proj") for target in self.target_parameters) and start == "orthogonal":
            raise ValueError("init_lora_weights orthogonal is defined for one matrix, not for stacked experts")
        if start == "orthogonal" and any(rank % 2 for rank in (self.r, *self.rank_pattern.values())):
            raise ValueError("init_lora_weights orthogonal needs even ranks")
        return self

    @property
    def changes_base(self) -> bool:
        """Whether attaching takes the adapter's start out of the base weights (PiSSA, OLoRA)."""
        return self.init_lora_weights.startswith(("pissa", "olora"))


class ParallelSection(Section):
    """How the run is laid over processes. One process needs none of it."""

    expert_parallel_size: PositiveInt = Field(default=1, description="Ranks that share out the experts of each layer.")
    data_parallel_size: PositiveInt | None = Field(
        default=None, description="Ranks that share out the rows: the number of processes. Default: however many are started."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(default=2, description="DeepSpeed ZeRO stage when more than one process runs.")
    offload_optimizer: Literal["none", "cpu"] = Field(
        default="none", description="Where optimizer state lies; cpu needs zero_stage 1 to 3."
    )
    offload_parameters: Literal["none", "cpu"] = Field(default="none", description="Where idle parameters lie; cpu needs zero_stage 3.")
    timeout_seconds: PositiveInt = Field(
        default=1800, description="A rank that gets no further for this long counts as hung, and ends the run."
    )


class WandbSection(Section):
    """Weights & Biases. Offline mode needs no account."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "ms4-train"
    entity: str | None = None
    name: str | None = None
    tags: list[str] = []


class TrackingSection(Section):
    """Where metrics go. metrics.jsonl in the output folder is always written."""

    console: bool = True
    wandb: WandbSection = WandbSection()
    peak_flops: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Peak FLOP/s of one device for MFU; default: a table of known GPUs, or measured once on CPU."
    )


class SftRun(Section):
    """Supervised fine-tuning: ``recipe: sft``."""

    recipe: Literal["sft"]
    output_dir: str
    seed: int = Field(default=0, ge=0, lt=2**31)
    model: ModelSection
    data: DataSection
    training: TrainingSection = TrainingSection()
    adapter: AdapterSection | None = None
    parallel: ParallelSection = ParallelSection()
    tracking: TrackingSection = TrackingSection()
    evaluation: TrainingEvaluation | None = Field(default=None, description="Tasks to answer during training.")
