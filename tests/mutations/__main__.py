"""Tries seeded mutations in the modules that decide, each against those tests that should notice it.

`python -m tests.mutations --count 300 --seed 1` prints what survived. It works in copies of the tree, and takes about
an hour. A survivor is a missing test, or has its reason in explained.toml.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, NamedTuple

from tests.mutations.changes import Change, changes, shown
from tests.mutations.pytest_process import exit_code
from tests.mutations.targets import TARGETS

ROOT = Path(__file__).parents[2]
EXPLAINED = Path(__file__).with_name("explained.toml")
WITHIN_S = 300.0
Verdict = Literal["killed", "timed out", "survived", "explained"]


class Mutation(NamedTuple):
    module: str
    source: str
    change: Change

    def text(self) -> str:
        return "\n".join(shown(self.source, self.change))


def main() -> int:
    """0 when no mutation survived without a reason, 1 otherwise, 2 where the tests fail as it is."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="mutations to try, spread over the modules")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="mutations at once")
    parser.add_argument("modules", nargs="*", help="modules to mutate, such as ferry/state/lease.py (all)")
    asked = parser.parse_args()
    unknown = sorted(set(asked.modules) - set(TARGETS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: not in tests/mutations/targets.py")
    chosen = asked.modules or list(TARGETS)
    mutations = choose(chosen, asked.count, asked.seed)
    print(f"{len(mutations)} mutations in {len(chosen)} modules, seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ferry-mutations-") as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for n in range(asked.jobs):
            trees.put(copied(Path(folder, str(n))))
        with ThreadPoolExecutor(asked.jobs) as pool:
            tests = sorted({test for module in chosen for test in TARGETS[module]})
            if not all(list(pool.map(lambda test: passes(trees, test), tests))):
                return 2
            verdicts = list(pool.map(lambda mutation: judged(trees, mutation), mutations))
    return told(list(zip(mutations, verdicts, strict=True)))


def choose(modules: Sequence[str], count: int, seed: int) -> list[Mutation]:
    """A seeded choice, in proportion to what each module has; each module at least ten, or all that it has."""
    seeded = random.Random(seed)
    pools = {module: _mutations(module) for module in modules}
    total = sum(map(len, pools.values()))
    chosen: list[Mutation] = []
    for pool in pools.values():
        share = max(10, round(count * len(pool) / total)) if total else 0
        chosen += sorted(seeded.sample(pool, min(share, len(pool))), key=lambda mutation: mutation.change)
    return chosen


def _mutations(module: str) -> list[Mutation]:
    source = (ROOT / module).read_text(encoding="utf-8")
    return [Mutation(module, source, change) for change in changes(source)]


def copied(tree: Path) -> Path:
    """The files that git knows, as they stand in the work tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


def passes(trees: SimpleQueue[Path], test: str) -> bool:
    """Does a file of tests pass without any mutation?"""
    tree = trees.get()
    began = time.monotonic()
    try:
        fine = tested(tree, [test]) == "survived"
    finally:
        trees.put(tree)
    print(f"{'passes' if fine else 'FAILS'} in {time.monotonic() - began:.0f} s without a mutation: {test}", flush=True)
    return fine


def judged(trees: SimpleQueue[Path], mutation: Mutation) -> Verdict:
    tree = trees.get()
    path = tree / mutation.module
    try:
        _write(path, mutation.change.apply(mutation.source))
        verdict = tested(tree, TARGETS[mutation.module])
    finally:
        _write(path, mutation.source)
        trees.put(tree)
    if verdict == "survived" and is_explained(mutation):
        verdict = "explained"
    print(f"{verdict:9} {mutation.module}:{mutation.change.line} {mutation.change.what}", flush=True)
    return verdict


def _write(path: Path, source: str) -> None:
    path.write_text(source, encoding="utf-8")
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):  # it is known by second and size alone
        compiled.unlink(missing_ok=True)


def tested(tree: Path, tests: Sequence[str]) -> Verdict:
    """What the tests say of a tree, in their order."""
    match exit_code(tree, tests, WITHIN_S):
        case None:
            return "timed out"
        case 0:
            return "survived"
        case _:
            return "killed"


def is_explained(mutation: Mutation) -> bool:
    """Has explained.toml a reason for exactly this change?"""
    known = tomllib.loads(EXPLAINED.read_text(encoding="utf-8")).get("survivor", [])
    return any(each["module"] == mutation.module and each["change"].strip() == mutation.text() for each in known)


def told(ends: Sequence[tuple[Mutation, Verdict]]) -> int:
    by_module: dict[str, Counter[Verdict]] = {}
    for mutation, verdict in ends:
        by_module.setdefault(mutation.module, Counter())[verdict] += 1
    print(f"\n{'module':36} tried killed explained survived")
    for module, counts in by_module.items():
        killed = counts["killed"] + counts["timed out"]
        print(f"{module:36} {counts.total():5} {killed:6} {counts['explained']:9} {counts['survived']:8}")
    survived = [mutation for mutation, verdict in ends if verdict == "survived"]
    for mutation in survived:
        print(f"\n{mutation.module}:{mutation.change.line} ({mutation.change.what})\n{mutation.text()}")
    noticed = sum(verdict in ("killed", "timed out") for _, verdict in ends)
    print(f"\n{noticed} of {len(ends)} noticed, {len(survived)} survived without a reason")
    return 1 if survived else 0


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    sys.exit(code)
