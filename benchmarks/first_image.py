"""How long after the page of `twofold serve` was asked for is its first image there?

    .venv/bin/python benchmarks/first_image.py RUN [--loads 7] [--address http://127.0.0.1:8765]

A server of its own over RUN (or the one at --address), and a headless Chromium that opens the page anew each time, with
an empty cache. Seconds from the navigation's start: `loaded` until the page's files are there, `seen` until the image
is seen for the first time, as noise, and `done` until it is finished. The first load is reported by itself: the server
has computed nothing before it but its warm start.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator

from common import report

WATCH = """
const timer = setInterval(() => {
  const [picture, save] = ["picture", "save"].map((id) => document.getElementById(id));
  if (picture && !picture.hidden) window.seenAt ??= performance.now();
  if (save && !save.hidden) {
    window.doneAt = performance.now();
    clearInterval(timer);
  }
}, 5);
"""
TIMES = "[performance.getEntriesByType('navigation')[0].loadEventEnd, window.seenAt, window.doneAt]"


@contextlib.contextmanager
def served(run: str) -> Iterator[str]:
    """The address of a server over the run, in a process of its own."""
    words = [sys.executable, "-m", "twofold", "serve", run, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = next(filter(None, (re.search(r"http://\S+", line) for line in process.stdout)), None)
            if found is None:
                raise SystemExit("the server did not start")
            yield found[0]
        finally:
            process.terminate()


def loads(address: str, n: int) -> list[list[float]]:
    """Seconds [loaded, seen, done] of each load."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for _ in range(n):
            context = browser.new_context()
            page = context.new_page()
            page.add_init_script(WATCH)
            page.goto(address)
            page.wait_for_selector("#save:not([hidden])", timeout=60_000)
            page.wait_for_timeout(50)
            rows.append([time / 1000 for time in page.evaluate(TIMES)])
            context.close()
        browser.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/demo/digits")
    parser.add_argument("--loads", type=int, default=7)
    parser.add_argument("--address", help="of a server that is there already")
    args = parser.parse_args()
    with contextlib.nullcontext(args.address) if args.address else served(args.run) as address:
        rows = loads(address, args.loads)
    columns = dict(zip(("loaded", "seen", "done"), zip(*rows, strict=True), strict=True))
    found = {
        "first_load": {name: round(times[0], 2) for name, times in columns.items()},
        "median": {name: round(statistics.median(times), 2) for name, times in columns.items()},
        "most": {name: round(max(times), 2) for name, times in columns.items()},
    }
    report("first_image", **found, loads=args.loads, load_average=round(os.getloadavg()[0], 1))


if __name__ == "__main__":
    main()
