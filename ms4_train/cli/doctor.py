"""``ms4 doctor``: what this machine can do, and what to do about what it cannot. The checks are in ``machine_checks.py``.

Exercise it: ``ms4 doctor`` and ``pytest tests/ms4_train/cli/test_doctor.py``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

EXAMPLES = """Examples:

ms4 doctor

ms4 doctor --json > machine.json"""

_COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Say what this machine can do: devices, packages, backends, sandbox, logins, disk.

    Logins are only looked for; no token is shown and nothing is sent anywhere.
    """
    from ms4_train.cli.machine_checks import run_checks

    checks = run_checks()
    if as_json:
        typer.echo(json.dumps({"checks": [asdict(check) for check in checks]}, indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "what", "found", "fix"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        colour = _COLOURS[check.status]
        table.add_row(f"[{colour}]{check.status}[/{colour}]", escape(check.name), escape(check.found), escape(check.fix or ""))
    Console().print(table)
    counts = {status: sum(check.status == status for check in checks) for status in _COLOURS}
    typer.echo(f"\n{counts['ok']} ok, {counts['warn']} to know about, {counts['missing']} missing.")
