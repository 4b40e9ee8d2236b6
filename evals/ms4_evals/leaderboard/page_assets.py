"""Style and sorting script of the leaderboard page.

Exercise it: ``pytest tests/evals/ms4_evals/leaderboard/test_page_assets.py``.
"""

from __future__ import annotations

STYLE = """
:root { --ink: #1f2328; --faint: #6a7178; --line: #dfe3e8; --soft: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1300px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 28px; margin: 0 0 8px; } h2 { font-size: 20px; margin: 40px 0 2px; } h3 { font-size: 16px; margin: 22px 0 6px; }
h4 { font-size: 14px; margin: 14px 0 4px; }
p { max-width: 80ch; } .facts { color: var(--faint); font-size: 12.5px; font-weight: normal; margin: 2px 0 10px; }
figure { margin: 18px 0; } figure img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th, td { padding: 6px 9px; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 600; vertical-align: bottom; } .left { text-align: left; min-width: 190px; overflow-wrap: anywhere; }
.strong { font-weight: 600; } td { white-space: pre-line; }
.below { display: block; color: var(--faint); font-size: 12px; font-weight: normal; white-space: nowrap; }
.group { text-align: center; border-left: 2px solid var(--line); }
.group-start { border-left: 2px solid var(--line); }
tbody tr:hover { background: var(--soft); }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid #0072b2; outline-offset: 2px; }
th[aria-sort="descending"] button::after { content: " \\2193"; } th[aria-sort="ascending"] button::after { content: " \\2191"; }
details { margin: 6px 0; } summary { cursor: pointer; } .sample { margin-left: 18px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); border-radius: 4px; padding: 8px 10px; margin: 2px 0 8px;
  max-height: 420px; overflow-y: auto; font: 12.5px/1.45 ui-monospace, SFMono-Regular, Menlo, monospace; }
dt { color: var(--faint); font-size: 12.5px; } dd { margin: 0; }
.verdict { display: inline-block; min-width: 84px; padding: 0 8px; border-radius: 9px; font-size: 12px; text-align: center;
  background: #e7eaee; }
.verdict.correct { background: #d3f0e3; } .verdict.wrong { background: #fbdfd0; } .verdict.error { background: #f6d5ea; }
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[1].cells);
  heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") !== "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const number = row => row.cells[index].dataset.value;
    const order = (a, b) => {
      if (index === 0) return (descending ? -1 : 1) * a.cells[0].textContent.localeCompare(b.cells[0].textContent);
      const x = number(a), y = number(b);
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return (descending ? -1 : 1) * (parseFloat(x) - parseFloat(y));
    };
    const body = table.tBodies[0];
    Array.from(body.rows).sort(order).forEach(row => body.appendChild(row));
  }));
}
"""
