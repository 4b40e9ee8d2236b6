"""The checks behind ``ms4 doctor``. Each one tries the thing where trying is cheap, and never raises.

Exercise it: ``ms4 doctor`` and ``pytest tests/ms4_train/cli/test_machine_checks.py``.

Not covered: whether a login is valid (that needs the network), and collective speed.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import netrc
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from ms4_train.errors import EvaluationError

_GIB = 1 << 30
_LOW_DISK_BYTES = 20 * _GIB
_PACKAGES = ("transformers", "peft", "deepspeed", "datasets", "accelerate", "safetensors", "mistral-common", "wandb")


@dataclass(frozen=True)
class Check:
    """One finding. ``missing`` means that some command will refuse to run; ``warn`` that it runs with less."""

    name: str
    status: Literal["ok", "warn", "missing"]
    found: str
    fix: str | None = None


def run_checks() -> list[Check]:
    """All checks, in the order of the table."""
    groups: list[tuple[str, Callable[[], list[Check]]]] = [
        ("system", check_system),
        ("packages", check_packages),
        ("torch", check_torch),
        ("triton", check_triton),
        ("CPU kernels", check_cpu_kernels),
        ("process groups", check_process_groups),
        ("sandbox", check_sandbox),
        ("tokenizer", check_tokenizer),
        ("logins", check_logins),
        ("disk", check_disk),
    ]
    checks: list[Check] = []
    for name, group in groups:
        try:
            checks += group()
        except Exception as error:  # a doctor that dies of one symptom is no help with the others
            checks.append(Check(name, "warn", f"the check itself failed: {type(error).__name__}: {error}"))
    return checks


def check_system() -> list[Check]:
    """Python, processor threads and memory."""
    checks = [Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    checks.append(Check("processor", "ok", f"{threads} threads, {memory / _GIB:.1f} GiB memory"))
    return checks


def check_packages() -> list[Check]:
    """Versions of the packages that a run needs, without importing them."""
    checks = []
    for name in _PACKAGES:
        found = _version(name)
        if found is None:
            checks.append(Check(name, "missing", "not installed", "install the project again: make setup"))
        else:
            checks.append(Check(name, "ok", found))
    return checks


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_torch() -> list[Check]:
    """torch and the devices it sees."""
    try:
        import torch
    except Exception as error:
        return [Check("torch", "missing", f"does not import ({type(error).__name__})", "install the project again: make setup")]
    checks = [Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if not torch.cuda.is_available():
        fix = None if torch.version.cuda is None and torch.version.hip is None else "check the GPU's driver"
        return [*checks, Check("devices", "warn", "cpu only: tiny models run, the 119B model does not", fix)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        checks.append(Check(f"device {index}", "ok", f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB"))
    return checks


def check_triton() -> list[Check]:
    """Whether Triton is there and finds a GPU to compile for."""
    found = _version("triton")
    if found is None or importlib.util.find_spec("triton") is None:
        return [Check("triton", "warn", "not installed; experts use the CPU or reference path", "pip install triton==3.7.1")]
    from triton.runtime import driver

    try:
        target = driver.active.get_current_target()
    except Exception:
        target = None
    if target is None:
        return [Check("triton", "warn", f"{found}, no GPU to run on; experts use the CPU path")]
    return [Check("triton", "ok", f"{found}, compiles for {target.backend} {target.arch}")]


def check_cpu_kernels() -> list[Check]:
    """Whether experts and attention run compiled on the CPU; the first call compiles them, in seconds."""
    from ms4_kernels.native import library, why_not
    from ms4_kernels.native.library import lanes

    loaded = library()
    if loaded is None:
        reason = why_not()
        fix = "unset MS4_NATIVE" if "MS4_NATIVE=0" in reason else "install a C compiler, or set CC to one"
        fix = "set MS4_NATIVE_CACHE to a folder that is yours alone" if "MS4_NATIVE_CACHE" in reason else fix
        return [Check("CPU kernels", "warn", f"plain torch, about half as fast: {reason}", fix)]
    return [Check("CPU kernels", "ok", f"compiled for this processor, {lanes(loaded)} numbers to a vector")]


def check_process_groups() -> list[Check]:
    """gloo by making a group of one process; NCCL by asking torch."""
    from torch import distributed
    from torch._C._distributed_c10d import HashStore

    if not distributed.is_available():
        return [Check("gloo", "missing", "torch without torch.distributed", "install another build of torch")]
    checks = []
    try:
        distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        distributed.barrier()
        checks.append(Check("gloo", "ok", "a process group of one works"))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        checks.append(Check("gloo", "missing", reason, "check that the host's own name resolves, or set GLOO_SOCKET_IFNAME=lo"))
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    if distributed.is_nccl_available():
        checks.append(Check("nccl", "ok", "in this build of torch"))
    else:
        checks.append(Check("nccl", "warn", "not in this build of torch; several GPUs cannot train together"))
    return checks


def check_sandbox() -> list[Check]:
    """Whether model-written code can be run here safely: the whole conformance suite, in a few seconds."""
    from ms4_evals.sandbox.conformance import check_sandbox as findings_of
    from ms4_evals.sandbox.opening import open_sandbox

    try:
        with open_sandbox() as sandbox:
            found = findings_of(sandbox)
            name = sandbox.sandbox_id
    except EvaluationError as error:
        return [Check("sandbox", "missing", f"{error.message}; model-written code is not graded", error.fix)]
    if found:
        return [Check("sandbox", "missing", f"{name} does not hold: {'; '.join(map(str, found))}"[:300], "report this as a defect")]
    return [Check("sandbox", "ok", f"{name} holds")]


def check_tokenizer() -> list[Check]:
    """Whether the tekken file that a tokenizer is derived from offline is installed."""
    if importlib.util.find_spec("mistral_common") is None:
        return [Check("tokenizer", "missing", "mistral-common is not installed", "install the project again: make setup")]
    files = importlib.resources.files("mistral_common") / "data"
    if any(file.name.startswith("tekken_") and file.name.endswith(".json") for file in files.iterdir()):
        return [Check("tokenizer", "ok", "can be derived offline (ms4 model tokenizer)")]
    fix = "give the release's tekken.json, or install mistral-common 1.13"
    return [Check("tokenizer", "missing", "mistral-common holds no tekken file", fix)]


def check_logins() -> list[Check]:
    """Whether there are logins for the Hugging Face hub and for W&B. Tokens are looked for, never shown."""
    checks = []
    try:
        from huggingface_hub import get_token

        has_hub_token = get_token() is not None
    except ImportError:
        has_hub_token = False
    if has_hub_token:
        checks.append(Check("hub login", "ok", "a token is set"))
    else:
        checks.append(Check("hub login", "warn", "none: public models and data only", "hf auth login"))
    if _has_wandb_key():
        checks.append(Check("wandb login", "ok", "a key is set"))
    else:
        checks.append(Check("wandb login", "warn", "none: use tracking.wandb.mode=offline", "wandb login"))
    return checks


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return any("wandb" in host for host in netrc.netrc(str(file)).hosts)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False


def check_disk() -> list[Check]:
    """Free space in the current folder and where the hub keeps downloads."""
    hub_cache = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    checks = []
    for name, folder in (("disk here", Path.cwd()), ("disk of the hub cache", Path(hub_cache))):
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        status = "ok" if free >= _LOW_DISK_BYTES else "warn"
        fix = None if status == "ok" else "a checkpoint of the 119B model takes 240 GB in bf16; tiny models take a few MB"
        checks.append(Check(name, status, f"{free / 1e9:.1f} GB free", fix))
    return checks
