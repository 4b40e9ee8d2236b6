"""Regular expressions of outside files, matched as Python matches them, in a process of their own that is ended when time is up.

Some short expressions take years on short names; nothing inside a process can stop one. The process knows the expression and the names,
imports nothing but ``json`` and ``re``, and has bounded memory where the system can bound it.
Exercise it: ``pytest tests/ms4_train/config/importing/test_patterns.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Literal

from ms4_train.errors import UntrustedInputError

MAX_CHARACTERS = 2000
SECONDS = 5.0
"""For the start of an interpreter and the matching; a sound expression takes a few milliseconds."""

_PROGRAM = """
import json, re, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
except (ImportError, OSError, ValueError):
    pass
request = json.load(sys.stdin)
try:
    match = getattr(re.compile(request["pattern"]), request["how"])
except (re.error, OverflowError, RecursionError, MemoryError) as error:
    answer = {"error": str(error) or type(error).__name__}
else:
    answer = {"names": [name for name in request["names"] if match(name)]}
json.dump(answer, sys.stdout)
"""


def matching_names(pattern: str, names: Sequence[str], *, how: Literal["match", "fullmatch"], key: str | None = None) -> list[str]:
    """The names that an expression matches.

    Args:
        pattern: the expression.
        names: what to match it with.
        how: ``fullmatch`` means the whole name, as PEFT does; ``match`` its beginning.
        key: named in errors.

    Raises:
        UntrustedInputError: the expression is too long, is none, or takes too much time or memory.
    """

    def refuse(message: str) -> UntrustedInputError:
        return UntrustedInputError(message, key=key, fix="write the names of the modules as a list instead.")

    if len(pattern) > MAX_CHARACTERS:
        raise refuse(f"an expression of {len(pattern):,} characters; at most {MAX_CHARACTERS:,} are read.")
    request = json.dumps({"pattern": pattern, "how": how, "names": list(names)})
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM]
    try:
        done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise refuse(f"the expression is not done after {SECONDS:.0f} seconds.") from None
    if done.returncode:
        raise refuse("the expression takes too much memory.")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise refuse(f"not a regular expression ({ascii(answer['error'])[1:-1][:80]}).")
    return answer["names"]
