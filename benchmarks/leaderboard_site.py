"""How long the leaderboard's site takes to build from 20,000 samples, how quick it is in Chromium, and what it looks like.

The samples are made up (``tests/support/sites.py``): words at random, with the lengths and the numbers of samples of real evaluations. No
model was asked, and the screenshots say so.

Exercise it: ``python benchmarks/leaderboard_site.py --samples 2000``. Without ``--samples`` it makes 20,000 and writes
``benchmarks/results/leaderboard/``.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ms4_evals.leaderboard.collect import collect_boards
from ms4_evals.leaderboard.publish import publish
from ms4_train.storage import atomic_write_bytes, atomic_write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "leaderboard"

# `from support.x import y` finds the tests' package here, as tests/conftest.py arranges it for them.
sys.modules["support"] = types.ModuleType("support")
sys.modules["support"].__path__ = [str(ROOT / "tests" / "support")]
from support import sites  # noqa: E402
from support.browser import chromium, find_chromium, watched_page  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SAMPLES = 20_000
MOST_SECONDS = 20.0
REPEATS = 5
_PNG_BYTES = 300_000


def main() -> None:
    """Measure, print, and write unless another number of samples is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--out", type=Path, help="Folder for leaderboard.json and the screenshots.")
    options = parser.parse_args()
    out = options.out or (RESULTS if options.samples == SAMPLES else None)
    chromium_path = find_chromium()
    if chromium_path is None:
        raise SystemExit("there is no Chromium on the path")
    with tempfile.TemporaryDirectory() as name, chromium(chromium_path) as browser:
        folder = Path(name)
        built = measure_build(folder, options.samples)
        page = measure_page(browser, folder / "out")
        result = {
            "machine": {
                "processors": multiprocessing.cpu_count(),
                "load_average": round(os.getloadavg()[1], 1),
                "python": platform.python_version(),
                "chromium": browser.version,
            },
            "build": built,
            "page": page,
        }
        print(json.dumps(result, indent=2))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            atomic_write_text(out / "leaderboard_site.json", json.dumps(result, indent=2) + "\n")
            take_screenshots(browser, folder / "small", out)


def measure_build(folder: Path, samples: int) -> dict[str, Any]:
    """Make a store and build its site ``REPEATS`` times, each in a fresh process."""
    problems = max(1, round((samples / (2 * len(sites.MODELS)) - 60) / 4))  # besides ten problems with six samples each
    sites.fill_store(folder / "r.sqlite", [sites.code_task(4, problems), sites.aime_task(6, 10)])
    runs = []
    for number in range(REPEATS):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            runs.append(pool.apply(build, (folder / "r.sqlite", folder / f"out{number}")))
    (folder / f"out{REPEATS - 1}").rename(folder / "out")
    median = {name: statistics.median(run[name] for run in runs) for name in ("wall_seconds", "cpu_seconds", "peak_mb")}
    return {
        "samples": runs[0]["samples"],
        "store_mb": round((folder / "r.sqlite").stat().st_size / 1e6, 1),
        "site_mb": runs[0]["site_mb"],
        "files": runs[0]["files"],
        "page_kb": round((folder / "out" / "index.html").stat().st_size / 1e3, 1),
        "median": {name: round(value, 2) for name, value in median.items()},
        "largest_wall_seconds": round(max(run["wall_seconds"] for run in runs), 2),
        "allowed_seconds": MOST_SECONDS,
    }


def build(store: Path, out: Path) -> dict[str, Any]:
    """What ``ms4 leaderboard build`` does, timed, in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    boards = collect_boards([store])
    written = publish(boards, out, title="Made-up answers")
    return {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "samples": sum(cell.summary.graded for board in boards for row in board.rows for cell in row.cells.values()),
        "site_mb": round(written.num_bytes / 1e6, 1),
        "files": written.num_files,
    }


TYPE = """() => {
  const search = document.getElementById("search"), times = [];
  for (const text of ["a", "ab", "abc", "abc4", "abc42", ""]) {
    const begin = performance.now();
    search.value = text;
    search.dispatchEvent(new Event("input"));
    document.querySelector(".list, table").getBoundingClientRect(); // style and layout belong to it
    times.push(performance.now() - begin);
  }
  return times;
}"""


def measure_page(browser: Browser, folder: Path) -> dict[str, Any]:
    """Medians, in milliseconds, of what a user waits for, from the folder."""
    times: dict[str, list[float]] = {}
    home = folder.as_uri() + "/"
    for _ in range(REPEATS):
        with watched_page(browser) as watched:
            page = watched.page

            def add(name: str, milliseconds: float) -> None:
                times.setdefault(name, []).append(milliseconds)

            page.goto(home + "index.html")
            page.wait_for_selector("tbody tr")
            # The page marks itself ready in the same task that makes the table.
            add("first_table", page.evaluate("() => performance.getEntriesByType('navigation')[0].domComplete"))
            times.setdefault("keystroke_overview", []).extend(page.evaluate(TYPE))
            board = page.evaluate("() => JSON.parse(document.getElementById('site').textContent).boards[0]")
            add("task_page", _waited(page, f"#/task/{board['id']}", "text=Identities in full"))
            add("list_of_all_samples", _waited(page, f"#/task/{board['id']}/samples", ".sample-head"))
            times.setdefault("keystroke_samples", []).extend(page.evaluate(TYPE))
            rows = page.evaluate("() => document.querySelectorAll('.option').length")
            for _ in range(5):
                add("next_sample", _next_sample(page))
            complaints = watched.complaints(home)
            assert not complaints, complaints
    medians = {
        name: {"median_ms": round(statistics.median(values), 1), "largest_ms": round(max(values), 1)} for name, values in times.items()
    }
    return {"rows_in_the_document": rows, **medians}


def _waited(page: Page, address: str, selector: str) -> float:
    begin = time.perf_counter()
    page.evaluate("hash => { location.hash = hash }", address)
    page.wait_for_selector(selector)
    return 1000 * (time.perf_counter() - begin)


def _next_sample(page: Page) -> float:
    """From the key to the next sample's texts on the page."""
    return page.evaluate(
        """() => new Promise(done => {
          const begin = performance.now(), pane = document.querySelector(".pane");
          new MutationObserver((_, observer) => {
            if (pane.hasAttribute("aria-busy") || !pane.querySelector(".sample-head")) return;
            observer.disconnect();
            pane.getBoundingClientRect();
            done(performance.now() - begin);
          }).observe(pane, { attributes: true, childList: true });
          document.body.focus();
          document.dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
        })"""
    )


def take_screenshots(browser: Browser, folder: Path, out: Path) -> None:
    """What the site looks like, of made-up answers to three tasks, light and dark."""
    folder.mkdir()
    sites.fill_store(folder / "r.sqlite", sites.three_tasks())
    boards = collect_boards([folder / "r.sqlite"])
    publish(boards, folder / "out", title="Made-up answers")
    home, board = f"{(folder / 'out').as_uri()}/index.html", boards[1].board_id[:12]
    views = (
        ("overview", "light", "", "tbody tr", None),
        ("overview_dark", "dark", "", "tbody tr", None),
        ("task", "light", f"#/task/{board}", "text=Identities in full", None),
        ("plot", "light", f"#/task/{board}", "text=Identities in full", ".chart-box"),
        ("sample", "light", f"#/task/{board}/samples?verdict=wrong&mode=high", ".sample-head", None),
        ("sample_dark", "dark", f"#/task/{board}/samples?verdict=wrong&mode=high", ".sample-head", None),
    )
    for name, scheme, address, selector, part in views:
        with watched_page(browser, color_scheme=scheme, viewport={"width": 1360, "height": 960}) as watched:
            watched.page.goto(home + address)
            watched.page.wait_for_selector(selector)
            watched.page.wait_for_timeout(300)
            data = watched.page.locator(part).first.screenshot() if part else watched.page.screenshot()
            atomic_write_bytes(out / f"{name}.png", _small_png(data))


def _small_png(data: bytes) -> bytes:
    """The image again, without transparency and as small as it gets without losing a colour."""
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(file, "PNG", optimize=True)
    assert file.tell() < _PNG_BYTES, f"a screenshot has {file.tell()} bytes"
    return file.getvalue()


if __name__ == "__main__":
    main()
