"""The scenes: contenders, libraries, origins and stores, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.library import Shelf
from benchmarks.place import BENCH
from benchmarks.settings import Settings
from benchmarks.stage import Entry, Stage
from benchmarks.tools import (
    NO_HEADS,
    UNCHECKED,
    ferry,
    ferry_again,
    img2dataset,
    juicefs_sync,
    rclone_copy,
    rclone_copy_and_check,
    rclone_copyurl,
    s5cmd,
    script,
)

SETTLED = "settled"  # the folder that scene f keeps for g
PAUSES = {"limited": "Retry-After: 1", "limited_silent": "no Retry-After"}
PINNED: dict[str, tuple[int, ...]] = {"one core": (0,), "all cores": ()}
BY_HAND = (64, 128, 256)

FERRY, FERRY_LOCAL = "Ferry", "Ferry, local server"
FERRY_UNCHECKED = "Ferry, checks: none"
FERRY_ONE = "Ferry, all cores, processes: 1"
FERRY_NEW = "Ferry, local server, new folder, empty HOME"
COPY, COPY_OFF = "rclone copy, 32 transfers", "rclone copy, 32 transfers, no checks"
COPY_NO_HEADS = f"{COPY_OFF}, no HEADs"
COPY_BARE, COPYURL_BARE = "rclone copy, as it comes", "rclone copyurl --urls, as it comes"
COPY_CHECKED = "rclone copy, then rclone check --download"
COPYURL = "rclone copyurl --urls, 32 transfers"
THREADS, LOOP = "requests + boto3, 32 threads", "requests + boto3, a plain loop"
S5CMD, JUICEFS = "s5cmd cp", "juicefs sync, 32 threads"
SETTLED_RUN, SETTLED_LOCAL = "Ferry, all settled", "Ferry, local server, all settled"
ONE_RUN, ONE_LOCAL = "Ferry, one object", "Ferry, local server, one object"


def by_hand(transfers: int, *, heads: bool = False) -> str:
    return f"rclone copy, {transfers} transfers, no checks" + ("" if heads else ", no HEADs")


@dataclass(frozen=True, slots=True)
class Scene:
    name: str
    title: str
    entries: Callable[[Settings, Shelf, Stage], list[Entry]]


def _a(settings: Settings, shelf: Shelf, stage: Stage) -> list[Entry]:
    whole, part, little = (shelf.plain(count) for count in (settings.n, settings.n // 4, settings.n // 20))
    return [
        Entry(ferry(FERRY), whole),
        Entry(rclone_copy(COPY, "--transfers", "32"), whole),
        Entry(rclone_copy(COPY_OFF, "--transfers", "32", *UNCHECKED), whole),
        Entry(rclone_copy(COPY_NO_HEADS, "--transfers", "32", *NO_HEADS), whole),
        Entry(rclone_copyurl(COPYURL, "--transfers", "32"), whole),
        Entry(script(THREADS, 32), part),
        Entry(script(LOOP, 1), little),
    ]


def _b(settings: Settings, shelf: Shelf, stage: Stage) -> list[Entry]:
    whole, little = shelf.plain(settings.n), shelf.plain(settings.n // 20)
    tools = [(ferry(FERRY), whole), (rclone_copy(COPY_BARE), little)]
    many = str(BY_HAND[-1])
    tools.append(
        (rclone_copy(by_hand(BY_HAND[-1], heads=True), "--transfers", many, "--checkers", many, *UNCHECKED), whole)
    )
    for transfers in () if settings.quick else BY_HAND:
        flags = ["--transfers", str(transfers), "--checkers", str(transfers), *NO_HEADS]
        tools.append((rclone_copy(by_hand(transfers), *flags), whole))
    return [Entry(tool, library, origin="slow_origin", store="slow_s3") for tool, library in tools]


def _c(settings: Settings, shelf: Shelf, stage: Stage) -> list[Entry]:
    long, library = shelf.plain(settings.limited), shelf.plain(settings.limited_peers)
    entries: list[Entry] = []
    for origin, how in PAUSES.items():
        entries.append(Entry(ferry(f"{FERRY} ({how})"), long, origin=origin))
        if settings.quick and how != PAUSES["limited"]:  # one origin is enough for a quick run
            continue
        tools = [
            rclone_copy(f"{COPY} ({how})", "--transfers", "32"),
            img2dataset(f"img2dataset, 32 threads, 5 retries ({how})", "--retries=5"),
            rclone_copy(f"{COPY}, --tpslimit 200 ({how})", "--transfers", "32", "--tpslimit", "200"),
        ]
        entries += [Entry(tool, library, origin=origin) for tool in tools[: 2 if settings.quick else 3]]
    return entries


def _d(settings: Settings, shelf: Shelf, stage: Stage) -> list[Entry]:
    library = shelf.plain(settings.n)
    tools = [
        ferry(FERRY),
        ferry(FERRY_UNCHECKED, checks="none"),
        s5cmd(S5CMD),
        juicefs_sync(JUICEFS, "--threads", "32"),
        rclone_copy(COPY, "--transfers", "32"),
    ]
    return [Entry(tool, library, origin="s3", download=True) for tool in tools]


def _e(settings: Settings, shelf: Shelf, stage: Stage) -> list[Entry]:
    library = shelf.broken(settings.n)
    entries = [
        Entry(ferry(FERRY, failure_budget="5%"), library),
        Entry(rclone_copyurl(COPYURL, "--transfers", "32"), library, codes=(0, 1)),
        Entry(script(THREADS, 32), library, codes=(0, 1)),
    ]
    return entries[:2] if settings.quick else entries


def _f(settings: Settings, shelf: Shelf, stage: Stage) -> list[Entry]:
    library = shelf.five(settings.many)
    return [
        Entry(ferry(FERRY_LOCAL, local=True), library, curve=True, keep=SETTLED),
        Entry(rclone_copy(COPY, "--transfers", "32"), library, curve=True),
    ]


def _g(settings: Settings, shelf: Shelf, stage: Stage) -> list[Entry]:
    library, one = shelf.five(settings.many), shelf.plain(1)
    if SETTLED not in stage.kept:
        stage.run("g", Entry(ferry(FERRY), library, keep=SETTLED), 0)
    entries = [
        Entry(ferry_again(SETTLED_RUN), library, again=SETTLED),
        Entry(ferry_again(SETTLED_LOCAL, local=True), library, again=SETTLED),
        Entry(ferry(ONE_RUN), one),
        Entry(ferry(ONE_LOCAL, local=True), one),
    ]
    return entries[:3] if settings.quick else entries


def _h(settings: Settings, shelf: Shelf, stage: Stage) -> list[Entry]:
    library = shelf.large(BENCH / "large", *settings.large)
    tools = [ferry(FERRY), rclone_copy(COPY_BARE), rclone_copyurl(COPYURL_BARE), rclone_copy_and_check(COPY_CHECKED)]
    return [Entry(tool, library, download=True) for tool in tools]


def _i(settings: Settings, shelf: Shelf, stage: Stage) -> list[Entry]:
    ten = shelf.plain(10)
    entries = [
        Entry(tool, ten, store="timed_s3")
        for tool in (ferry(FERRY), ferry(FERRY_NEW, local=True), rclone_copy(COPY_BARE))
    ]
    if not settings.quick:
        used = stage.folder / "used"  # a folder where a job has run before
        stage.run("i", Entry(ferry(FERRY, local=True), ten, folder=used), 0)
        entries.append(Entry(ferry(FERRY_LOCAL, local=True), ten, store="timed_s3", folder=used))
    return entries


def _sink(settings: Settings, shelf: Shelf, stage: Stage) -> list[Entry]:
    entries: list[Entry] = []
    for how, cores in PINNED.items():
        library = shelf.plain(settings.n) if cores else shelf.five(settings.many)
        tools = [
            ferry(f"{FERRY}, {how}"),
            rclone_copy(f"{COPY_OFF}, {how}", "--transfers", "32", *UNCHECKED),
        ]
        if not cores:
            tools += [ferry(f"{FERRY}, {how}, processes: {count}", processes=count) for count in (1, 2)]
        if not settings.quick:
            tools.append(rclone_copy(f"{COPY_NO_HEADS}, {how}", "--transfers", "32", *NO_HEADS))
        entries += [Entry(tool, library, store="sink", cores=cores, curve=not cores) for tool in tools]
    return entries


SCENES = (
    Scene("a", "HTTP to S3, loopback", _a),
    Scene("b", "HTTP to S3, 50 ms more for each request at either end", _b),
    Scene("c", "an origin that refuses more than 200 requests a second", _c),
    Scene("d", "S3 to S3, one server", _d),
    Scene("e", "2% of the rows broken: missing, an HTML page, a cut file", _e),
    Scene("f", "throughput over time", _f),
    Scene("g", "a finished job once more", _g),
    Scene("h", "large objects", _h),
    Scene("i", "the fixed cost: a job of ten objects", _i),
    Scene("sink", "a store that accepts everything and keeps nothing", _sink),
)
