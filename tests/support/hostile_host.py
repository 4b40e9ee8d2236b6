"""What hostile programs aim at, all of it harmless: files, sockets, a variable, a process that exist for one attack and are then looked at.

``Targets`` belongs to one run. ``facts`` is what a program is told, which is everything: no attack fails for want of an address.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """How an attack looked from outside. ``answered`` is false for a program that had to be stopped."""

    stdout: bytes
    returncode: int | None
    seconds: float
    answered: bool = True


class Targets:
    """Everything that one attack may try to reach; a context manager."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(16)
        self.marker = f"hostile-{secrets.token_hex(8)}"
        self.folder = Path(tempfile.mkdtemp(prefix="ms4-hostile-"))
        # Open to everybody: what protects them is the sandbox, not who we are.
        self.folder.chmod(0o777)
        self.canary = self.folder / "canary"
        self.canary.write_text(self.secret)
        self.canary.chmod(0o666)
        self.work = self.folder / "work"
        self.work.mkdir()
        self.work.chmod(0o777)
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(self.folder / "socket"))
        (self.folder / "socket").chmod(0o777)
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind("\0" + self.marker)
        for end in (self.unix, self.abstract):
            end.listen()
        for end in (self.tcp, self.udp, self.unix, self.abstract):
            end.setblocking(False)
        self.victim = subprocess.Popen(["sleep", "60"], env={"SECRET": self.secret}, cwd=self.folder)
        self.leaked = os.open(self.folder, os.O_PATH)
        os.set_inheritable(self.leaked, True)

    def facts(self, *, inside: bool) -> bytes:
        """Bombs have no end inside, and are small outside, where they go off."""
        facts = {
            "canary": str(self.canary),
            "folder": str(self.folder),
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "unix": str(self.folder / "socket"),
            "marker": self.marker,
            "victim": self.victim.pid,
            "kill": -1 if inside else self.victim.pid,
            "shm": "/dev/shm" if inside else str(self.folder),
            "library": None if inside else str(self.canary),
            "leaked": self.leaked,
            "count": 10**9 if inside else 100,
            "megabytes": 10**6 if inside else 80,
            "seconds": 60 if inside else 1.5,
        }
        return json.dumps(facts).encode()

    def environment(self) -> dict[str, str]:
        """For a program outside."""
        return {"SECRET": self.secret, "HOME": str(self.folder), "PATH": os.defpath, "LANG": "C.UTF-8"}

    def was_changed(self) -> bool:
        return self.canary.read_text() != self.secret

    def was_called(self) -> bool:
        """Whether anything arrived at a socket."""
        for end in (self.tcp, self.unix, self.abstract):
            with contextlib.suppress(BlockingIOError):
                end.accept()[0].close()
                return True
        with contextlib.suppress(BlockingIOError):
            self.udp.recv(100)
            return True
        return False

    def was_killed(self) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.victim.wait(0.05)
        return self.victim.poll() is not None

    def left_running(self) -> list[int]:
        """Processes on this machine that carry the marker of this attack."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self.marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def effects(self, result: Result) -> list[str]:
        """Everything that was reached, whatever the attack was meant for."""
        found = {
            "canary changed": self.was_changed(),
            "connection": self.was_called(),
            "victim killed": self.was_killed(),
            "secret read": self.secret.encode() in result.stdout,
            "file left": sorted(path.name for path in self.folder.iterdir()) != ["canary", "socket", "work"]
            or any(self.work.iterdir())
            or Path("/dev/shm", self.marker).exists(),
            "process left": bool(self.left_running()),
        }
        return [name for name, is_so in found.items() if is_so]

    def close(self) -> None:
        for number in self.left_running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.work.chmod(0o700)
        self.victim.kill()
        self.victim.wait()
        for end in (self.tcp, self.udp, self.unix, self.abstract):
            end.close()
        os.close(self.leaked)
        Path("/dev/shm", self.marker).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Targets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
