"""Work in a forked process that a test may really kill: torch is imported once, so a kill costs a second and not ten.

Used by ``support.kill_runs`` and ``support.eval_kills``.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from ms4_train.errors import MS4Error


def fork(work: Callable[[], Any]) -> int:
    """Start ``work`` in a process of its own; returns its id. Its output goes to standard error."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        os.dup2(2, 1)
        code = 70
        try:
            work()
            code = 0
        except MS4Error as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return process


def wait(process: int) -> int:
    """Exit code of the process; minus the signal when it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
