"""What every test shares: the package ``support``, the folder of real test data, and what is skipped where.

``MS4_TEST_DATA`` names the folder of real data (default ``../shared/data`` beside the checkout). Tests marked ``data`` skip without it;
with ``MS4_REQUIRE_DATA=1``, as in continuous integration, they fail instead. Tests that need a sandbox skip where there are no user
namespaces; ``MS4_REQUIRE_SANDBOX=1`` makes them fail.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

TESTS = Path(__file__).resolve().parent

# One thread per process: the tests run in several processes, and results do not depend on the machine's thread count.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same examples on every run; `make test-full` draws new ones each time.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("searching")
settings.load_profile(os.environ.get("MS4_HYPOTHESIS", "repeatable"))

# Inside an allocation of a cluster, what tests start is not its job.
for name in [name for name in os.environ if name.startswith("SLURM_")]:
    del os.environ[name]

# No test reads the network; a hub name that slips in fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

# Processes that a test gives another home folder find the compiled kernels all the same.
os.environ.setdefault("MS4_NATIVE_CACHE", str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ms4_kernels"))

if "support" not in sys.modules:
    # `from support.x import y` without the folder `tests` on sys.path: its `kernels`, `evals` and `ms4_train` would shadow packages.
    support = types.ModuleType("support")
    support.__path__ = [str(TESTS / "support")]
    sys.modules["support"] = support


def data_folder_or_none() -> Path | None:
    """The folder of real test data, where there is one."""
    folder = Path(os.environ.get("MS4_TEST_DATA") or TESTS.parent.parent / "shared" / "data")
    return folder.resolve() if (folder / "aime").is_dir() else None


def _without_data() -> NoReturn:
    reason = "MS4_TEST_DATA names no folder of test data (default: ../shared/data beside the checkout)"
    if os.environ.get("MS4_REQUIRE_DATA") == "1":
        pytest.fail(f"MS4_REQUIRE_DATA=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real test data. A test that uses it is marked ``data``."""
    return data_folder_or_none() or _without_data()


@pytest.fixture(scope="session")
def sandboxed() -> None:
    """Skips a test where programs cannot be isolated."""
    from support.sandboxes import need_sandbox

    need_sandbox()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("data") and data_folder_or_none() is None:
        _without_data()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
