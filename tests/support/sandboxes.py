"""The sandbox of this machine for tests, or a skip that says what is missing; with ``MS4_REQUIRE_SANDBOX=1`` a failure."""

from __future__ import annotations

import os

import pytest

from ms4_evals.sandbox.base import Sandbox
from ms4_evals.sandbox.opening import open_sandbox
from ms4_train.errors import EvaluationError


def sandbox_or_skip() -> Sandbox:
    """An open sandbox; the caller closes it."""
    try:
        return open_sandbox()
    except EvaluationError as error:
        reason = f"there is no sandbox here: {error.message}"
        if os.environ.get("MS4_REQUIRE_SANDBOX") == "1":
            pytest.fail(f"MS4_REQUIRE_SANDBOX=1, but {reason}")
        pytest.skip(reason)


def need_sandbox() -> None:
    """Skip, or fail, where there is no sandbox."""
    sandbox_or_skip().close()
