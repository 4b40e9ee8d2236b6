"""A rank for tests of the launcher: does what its arguments say and notes what happens to it. ``python launched_rank.py FOLDER MODE``"""

import json
import os
import signal
import sys
import time
from pathlib import Path

folder, mode = Path(sys.argv[1]), sys.argv[2]
rank = int(os.environ["RANK"])
received = []


def note(number, frame):
    received.append(number)
    (folder / f"signals-{rank}.json").write_text(json.dumps(received))
    if mode == "polite":
        time.sleep(0.3)
        sys.exit(128 + number)


def wait():
    told = folder / f"told-{rank}"
    told.write_text(str(os.getpid()))
    told.rename(folder / f"pid-{rank}")  # whole for who waits for it
    time.sleep(60)


if mode == "environment":
    (folder / f"environment-{rank}.json").write_text(json.dumps({**os.environ, "terminal": os.isatty(1), "input": sys.stdin.read()}))
    print(f"from {rank}")
    print("the same from all", file=sys.stderr)
elif mode == "turns":
    for turn in range(20 * (rank == 0)):
        print(turn, file=(sys.stdout, sys.stderr)[turn % 2], flush=True)
elif mode == "size":
    print("columns", os.get_terminal_size(1).columns if os.isatty(1) else None, os.isatty(2))
elif mode == "codes":
    codes = [int(code) for code in sys.argv[3].split(",")]
    time.sleep(0.2 * (codes[rank] == 2))  # later than those whose codes say that another was lost
    if codes[rank] < 0:
        os.kill(os.getpid(), -codes[rank])
    if codes[rank]:
        print("error: it broke.", file=sys.stderr)
    sys.exit(codes[rank])
elif mode == "one fails":
    sys.exit(3) if rank == 1 else wait()
elif mode == "one stops":
    if rank == 1:
        (folder / "pid-1").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.5)
    sys.exit(76)
else:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    while True:
        wait()
