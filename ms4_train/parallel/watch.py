"""A watch over the ranks of a run: when one dies, hangs or ends with an error, all others end too and say which one it was and where.

Collectives do not tell. Gloo says "connection closed by peer" of a neighbour that may be a victim itself, NCCL waits until its timeout, and
nobody finds a stopped process. So every rank keeps a connection of its own to rank 0, apart from gloo and NCCL, in a thread of its own:
it says where the rank is at every phase (``progress``) and twice a second that it lives.

- A rank dies: its connection closes, and rank 0 tells the others at once. A machine that is gone answers no probes for 7 seconds.
- A rank hangs: there is no progress of any rank, or no message of one, for ``parallel.timeout_seconds``. Named is the rank that is behind
  the others, or the one that does not wait while all others wait for it; its line of code is shown.
- A rank ends with an error of its own: it says so.
- Rank 0 does one of these: the others see it themselves.

Then the main thread raises ``RankLostError`` at its next phase or when its collective fails; where it is stuck in one, the thread of the
watch ends the process 3 seconds later. A stopped process does the same when it goes on. The exit code is 76; where a rank ended with an
error of its own that a user can mend, it is that error's.

Not covered: the time before the ranks have met; a main thread that holds Python's lock for longer than the timeout counts as hung.
Exercise it: ``pytest tests/ms4_train/parallel/test_watch.py tests/reliability/test_rank_loss.py``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import _set_pg_timeout

from ms4_train.errors import MS4Error, ParallelError, RankLostError
from ms4_train.parallel import progress
from ms4_train.parallel.mesh import Mesh
from ms4_train.parallel.watch_hub import Hub
from ms4_train.parallel.watch_member import Member

JOIN_SECONDS = 60.0
"""For all ranks to reach rank 0."""
VERDICT_SECONDS = 3.0
"""How long a failed collective waits for the reason; half the timeout where that is shorter."""

COLLECTIVE_TIMEOUTS = 4
"""After so many timeouts of the run gloo and NCCL give a collective up themselves."""

_current: Hub | Member | None = None


@contextlib.contextmanager
def watched(mesh: Mesh, *, timeout_seconds: float) -> Iterator[None]:
    """Watch over the ranks while the block runs. Collective at its begin; at its end rank 0 waits for the others. One process: nothing.

    Args:
        mesh: the ranks.
        timeout_seconds: without progress for so long a rank counts as hung.

    Raises:
        RankLostError: another rank died, hangs, or ended with an error of its own.
        ParallelError: a rank cannot reach rank 0.
    """
    global _current
    if mesh.expert_parallel_group is None:  # no other process, or none that this one has met
        yield
        return
    watcher = _start(mesh, timeout_seconds)
    _current = watcher
    earlier = progress.listen(None)

    def entered(place: progress.Place) -> None:
        watcher.entered(place)
        if earlier is not None:
            earlier(place)

    progress.listen(entered)
    try:
        try:
            yield
        except BaseException as error:
            _leave_with(watcher, error)
            raise
        progress.at("end")
        watcher.leave("done", "")
    finally:
        progress.listen(earlier)
        _current = None


def reason() -> RankLostError | None:
    """Why a collective has failed, for a caller who turns failures into errors of its own; waits a little for the news.

    Returns:
        None where the watch knows of nothing, or there is no watch.
    """
    return None if _current is None else _verdict_on(_current)


def _verdict_on(watcher: Hub | Member) -> RankLostError | None:
    watcher.concluded.wait(min(VERDICT_SECONDS, watcher.timeout / 2))
    return None if watcher.verdict is None else watcher.verdict.error()


def _leave_with(watcher: Hub | Member, error: BaseException) -> None:
    """Tell the others that this rank ends with ``error``, or raise the reason where it is another rank's end."""
    if isinstance(error, RankLostError):
        return
    is_typed = isinstance(error, MS4Error)
    # A collective fails in the rank's neighbours before the news of its death is here.
    if isinstance(error, Exception) and not is_typed and (lost := _verdict_on(watcher)) is not None:
        raise lost from error
    if isinstance(error, SystemExit) and not error.code:
        watcher.leave("done", "")
        return
    kind = "agreed" if is_typed and error.on_all_ranks else "error"
    # What is not one of our errors may come of the machine, as a loss does.
    code = error.exit_code if is_typed else RankLostError.exit_code
    watcher.leave(kind, str(error) if is_typed else f"{type(error).__name__}: {error}".removesuffix(": "), code)


def _start(mesh: Mesh, timeout: float) -> Hub | Member:
    own: dict[str, Any] = {"host": socket.gethostname(), "process": os.getpid()}
    listener = None
    if mesh.is_main:
        listener, own["address"] = _listen(mesh.world_size)
        own |= {"port": listener.getsockname()[1], "token": secrets.token_hex(16)}
    everyone = mesh.all_gather_json(own)
    names = [f"rank {rank} ({one['host']}, process {one['process']})" for rank, one in enumerate(everyone)]
    hub, problem, watcher = everyone[0], "", None
    try:
        if listener is not None:
            watcher = Hub(listener, hub["token"], names, timeout)
        else:
            connection = socket.create_connection((hub["address"], hub["port"]), timeout=JOIN_SECONDS)
            watcher = Member(connection, hub["token"], mesh.rank, names, timeout)
        watcher.start()
        if not watcher.joined.wait(JOIN_SECONDS):
            problem = "not every rank came" if mesh.is_main else f"no answer from {hub['address']}:{hub['port']}"
    except OSError as error:
        problem = f"{hub['address']}:{hub['port']} cannot be reached ({error.strerror or error})"
    problems = mesh.all_gather_json(problem)
    for rank, text in reversed(list(enumerate(problems))):  # rank 0 only waits for the others
        if text:
            if watcher is not None:
                watcher.stop()
            raise ParallelError(
                f"the watch over the ranks does not begin: rank {rank}: {text}.",
                key="MASTER_ADDR",
                fix="let it be an address of rank 0's machine that the other machines reach, on every port.",
            )
    assert watcher is not None
    for group in (None, mesh.expert_parallel_group, mesh.expert_data_parallel_group):
        # From here on the watch decides what hangs: a rank may wait longer for one that gets on.
        _set_pg_timeout(timedelta(seconds=COLLECTIVE_TIMEOUTS * timeout), group)
    return watcher


def _listen(backlog: int) -> tuple[socket.socket, str]:
    """A listening socket and the name that others reach it by: where the ranks met, or, if that is another machine, this machine's."""
    for host in (os.environ.get("MASTER_ADDR") or "127.0.0.1", socket.gethostname()):
        try:
            family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
            place = str(address[0])
            if place.startswith("127.") and host != "localhost" and not host.startswith("127."):
                place = ""  # a machine that knows its own name as a loopback address; others know it otherwise
            return socket.create_server((place, 0), family=family, backlog=backlog), host
        except OSError:
            continue
    return socket.create_server(("", 0), backlog=backlog), socket.gethostname()


def _forget_in_child() -> None:
    """A forked process that kept the connections would make its parent seem alive after its death."""
    global _current
    watcher, _current = _current, None
    if watcher is not None:
        progress.listen(None)
        watcher.close_sockets()


os.register_at_fork(after_in_child=_forget_in_child)
