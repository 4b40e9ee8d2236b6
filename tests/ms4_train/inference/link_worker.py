"""One of three ranks that send each other messages of many sizes; the last one dies in between. Writes folder/RANK.json."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from ms4_train.config.schema import ParallelSection
from ms4_train.errors import RankLostError
from ms4_train.inference.rank_link import RankLink
from ms4_train.parallel import init_mesh

SIZES = (0, 1, 400, 503, 504, 505, 4087, 4088, 4089, 100_000)


def main() -> None:
    mesh = init_mesh(ParallelSection(timeout_seconds=60))
    link = RankLink(mesh)
    report: dict[str, Any] = {"orders": []}
    for size in SIZES:
        text, part = "x" * size, bytes([size % 256]) * size
        if mesh.is_main:
            link.order({"text": text}, {1: part, 2: part + b"2"} if size != 400 else {2: part})
            report["orders"].append([len(text), hashlib.sha256(part if size != 400 else b"").hexdigest()])
            found = link.replies()
            report["replies"] = report.get("replies", True) and found == [b"1" * size, b"2" * size]
        else:
            order, received = link.next_order()
            report["orders"].append([len(order["text"]), hashlib.sha256(received).hexdigest()])
            link.reply(str(mesh.rank).encode() * size)
    if mesh.rank == 2:
        os._exit(0)  # a code that is no failure, or whoever started the ranks would end the others too
    if mesh.is_main:
        for key in ("lost", "after"):
            try:
                while True:
                    link.order({}, {})
                    link.replies()
            except RankLostError as error:
                report[key] = f"{type(error).__name__}: {error}"
    (Path(sys.argv[1]) / f"{mesh.rank}.json").write_text(json.dumps(report))
    os._exit(0)


if __name__ == "__main__":
    main()
