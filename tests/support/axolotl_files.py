"""The settings of axolotl's four examples for this model (version 0.18), put together here from their keys and values."""

from __future__ import annotations

from pathlib import Path

PATTERN = r"model.language_model.layers.[\d]+.(mlp|cross_attn|self_attn).(up|down|gate|q|k|v|o)_proj"
NAMES = ("qlora-text", "qlora-vision", "fft-text", "fft-vision")

_COMMON = """
base_model: axolotl-ai-co/Mistral-Small-4-119B-2603-BF16
dataset_prepared_path: last_run_prepared
val_set_size: 0.01
output_dir: ./outputs/out
sequence_len: 2048
wandb_project:
wandb_entity:
wandb_watch:
wandb_name:
wandb_log_model:
gradient_accumulation_steps: 1
micro_batch_size: 1
num_epochs: 1
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
bf16: true
tf32: true
logging_steps: 1
attn_implementation: flash_attention_2
warmup_ratio: 0.1
evals_per_epoch: 1
saves_per_epoch: 1
weight_decay: 0.0
"""
_TEXT = """
datasets: [{path: fozziethebeat/alpaca_messages_2k_test, type: chat_template}]
sample_packing: true
"""
_VISION = """
processor_type: AutoProcessor
skip_prepare_dataset: true
remove_unused_columns: false
datasets: [{path: Nanobit/text-vision-2k-test, type: chat_template}]
sample_packing: false
"""
_QLORA = f"""
plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]
load_in_4bit: true
quantize_moe_experts: true
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: '{PATTERN}'
learning_rate: 2e-4
gradient_checkpointing: true
"""
_FULL = """
plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin, axolotl.integrations.kernels.KernelsPlugin]
use_kernels: true
use_sonicmoe: true
learning_rate: 2e-5
fsdp_version: 2
fsdp_config:
  offload_params: false
  cpu_ram_efficient_loading: false
  state_dict_type: FULL_STATE_DICT
  auto_wrap_policy: TRANSFORMER_BASED_WRAP
  transformer_layer_cls_to_wrap: Mistral4DecoderLayer
  reshard_after_forward: true
  activation_checkpointing: true
"""
_UNFROZEN = "unfrozen_parameters: [model.language_model.*, lm_head, embed_tokens]\n"
# What stands commented in the adapter examples.
EXPERTS = """
lora_target_parameters: [mlp.experts.gate_up_proj, mlp.experts.down_proj]
lora_mlp_kernel: false
lora_qkv_kernel: false
lora_o_kernel: false
"""

TEXTS = {
    "qlora-text": _COMMON + _TEXT + _QLORA,
    "qlora-vision": _COMMON + _VISION + _QLORA,
    "fft-text": _COMMON + _TEXT + _FULL + _UNFROZEN,
    "fft-vision": _COMMON + _VISION + _FULL,
}


def write_axolotl(folder: Path, name: str, extra: str = "") -> Path:
    """Write one of the four, with more lines at its end."""
    path = folder / f"{name}.yml"
    path.write_text(TEXTS[name] + extra)
    return path
