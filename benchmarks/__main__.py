"""The program of `make bench`: `python -m benchmarks [--n N] [--rounds ROUNDS] [--scenes a,b] [--write] [--keep]`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Generator
from pathlib import Path

from benchmarks import nginx, report
from benchmarks.images import images
from benchmarks.library import Shelf
from benchmarks.machine import facts
from benchmarks.nginx import Nginx
from benchmarks.place import BENCH, RESULTS, ROOT, kind, work_folders
from benchmarks.results import Result
from benchmarks.scenes import SCENES, Scene
from benchmarks.settings import FULL_N, FULL_ROUNDS, Settings
from benchmarks.stage import Patience, Stage
from demo.s3 import S3Server
from flows.server.local import LocalServer


def parse(arguments: list[str]) -> Settings:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--n", type=int, default=FULL_N, help="objects; 20,000 by default")
    parser.add_argument("--rounds", type=int, default=0, help="3, or 1 with a smaller N")
    parser.add_argument("--scenes", default="", help="a,b,c,...; all by default")
    parser.add_argument("--write", action="store_true", help="write the page of results also with a smaller N")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all files")
    given = parser.parse_args(arguments)
    known = [scene.name for scene in SCENES]
    scenes = tuple(given.scenes.split(",")) if given.scenes else tuple(known)
    if unknown := [name for name in scenes if name not in known]:
        parser.error(f"no scene `{unknown[0]}`; known are {', '.join(known)}")
    if given.n < 100:
        parser.error("--n must be 100 or more")
    full = given.n >= FULL_N and scenes == tuple(known)
    return Settings(
        given.n, given.rounds or (FULL_ROUNDS if given.n >= FULL_N else 1), scenes, given.write or full, given.keep
    )


def line(result: Result) -> str:
    rate = f"{result.rate:9,.0f} objects/s" if result.rate and result.valid else " " * 19
    note = "" if result.valid else f"   DOES NOT COUNT: {result.note}"
    return f"{result.scene:>4} {result.round}  {result.contender:<58} {rate}  {result.wall_s:7.1f} s{note}"


def play(scene: Scene, settings: Settings, stage: Stage) -> list[Result]:
    """Runs all rounds of a scene. The contenders run in turn, and each round begins with another one."""
    if not (scene.name == "g" and stage.kept):
        stage.fresh_store()
    entries = scene.entries(settings, stage.shelf, stage)
    results: list[Result] = []
    for turn in range(settings.rounds):
        first = turn % len(entries)
        for entry in entries[first:] + entries[:first]:
            results.append(stage.run(scene.name, entry, turn + 1))
            print(line(results[-1]), flush=True)
            if entry.tool.is_ferry and not results[-1].valid:
                print(results[-1].output, flush=True)
    return results


def bench(settings: Settings, links: Path, folder: Path) -> Generator[list[Result]]:
    """Yields the results of one scene after the other."""
    pool, entries = images(BENCH, settings.n)
    root = links / "origin"
    digests = folder / "md5.txt"
    digests.write_text("".join(f"{path.rpartition('/')[2]}\t{md5}\n" for path, md5, _ in entries))
    shelf = Shelf(root, pool, entries)
    root.mkdir()
    store = S3Server(folder / "s3")
    port = int(store.endpoint_url.rpartition(":")[2])
    with store, LocalServer(folder / "prefect") as prefect, Nginx(folder / "nginx", root, port, digests) as origin:
        stage = Stage(folder, shelf, store, origin, prefect, Patience(*settings.patience))
        for scene in SCENES:
            if scene.name in settings.scenes:
                yield play(scene, settings, stage)


def main() -> int:
    settings = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like a Ctrl-C, servers included
    nginx.install()
    machine = facts()
    RESULTS.mkdir(parents=True, exist_ok=True)
    data = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json"
    began, results = time.monotonic(), list[Result]()
    try:
        with work_folders(keep=settings.keep, room=settings.room) as (links, folder):
            machine["store and state in"] = kind(folder)
            with contextlib.closing(bench(settings, links, folder)) as scenes:
                for found in scenes:
                    results += found
                    data.write_text(report.as_json(settings, machine, results, time.monotonic() - began))
    except KeyboardInterrupt:
        print("interrupted; the servers are stopped")
        return 130
    seconds = time.monotonic() - began
    print(f"\n{report.text(settings, machine, results, seconds)}\nAll of it: {data.relative_to(ROOT)}")
    if settings.write:
        report.write_page(settings, machine, results, seconds)
        print(f"written: {report.PAGE.relative_to(ROOT)} and {report.KEPT.relative_to(ROOT)}/")
    elif settings.quick:
        print(f"With N={settings.n} this only shows that it works. Quote numbers with N={FULL_N}.")
    lost = [result for result in results if result.contender.startswith("Ferry") and not result.valid]
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
