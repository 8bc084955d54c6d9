"""`make pictures`: run the live stack for some minutes and draw every dashboard into docs/images."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Final

import httpx2

from mcpmeter.monitoring.dashboards import pages
from mcpmeter.monitoring.dashboards.spec import Page
from pictures.draw import Results, draw
from pictures.queries import Prometheus, fill_variables, is_range
from pictures.stand import stand

IMAGES: Final = Path(__file__).parent.parent / "docs" / "images"
WARMING_UP_SECONDS: Final = 20
POINTS: Final = 160
JOB: Final = "mcpmeter"


def main() -> None:
    """Parse the options, run the stack and draw."""
    parser = argparse.ArgumentParser(prog="python -m pictures")
    parser.add_argument("--seconds", type=int, default=240, help="how long the stack runs")
    parser.add_argument("--seed", type=int, default=1, help="seed of the traffic and of the simulated providers")
    parser.add_argument("--into", type=Path, default=IMAGES, help="folder for the pictures")
    options = parser.parse_args()
    asyncio.run(_run(options.seconds, options.seed, options.into))


async def _run(seconds: int, seed: int, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mcpmeter-pictures-") as folder:
        async with stand(Path(folder), seed=seed) as live, httpx2.AsyncClient(timeout=60, trust_env=False) as http:
            await asyncio.sleep(WARMING_UP_SECONDS + seconds)
            prometheus = Prometheus(http, live.prometheus)
            results = {name: await _results(prometheus, page, seconds) for name, page in pages().items()}
    for name, page in pages().items():
        path = into / f"dashboard-{name.replace('_', '-')}.png"
        draw(page, results[name], path)
        print(path)


async def _results(prometheus: Prometheus, page: Page, seconds: int) -> dict[str, Results]:
    end = time.time()
    results: dict[str, Results] = {}
    for panel in page.panels:
        exprs = [fill_variables(query.expr, range_seconds=seconds, job=JOB) for query in panel.queries]
        if is_range(panel):
            found = [await prometheus.over(expr, end - seconds, end, max(1, seconds // POINTS)) for expr in exprs]
        else:
            found = [await prometheus.now(expr) for expr in exprs]
        results[panel.title] = Results(panel, found)
    return results


if __name__ == "__main__":
    main()
