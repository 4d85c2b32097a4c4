"""A bag without its payload (RFC 8493): manifests of all objects, bag-info.txt and the manifest of its other files."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferry.state import spreadsheet_safe

if TYPE_CHECKING:
    import duckdb

SHA256, MD5, TAGS = "manifest-sha256.txt", "manifest-md5.txt", "tagmanifest-sha256.txt"
WITHOUT, READ_NOW = "objects-without-digests.csv", "digests-read-now.csv"
LINES = 50_000  # in memory at a time


@dataclass(slots=True)
class Bag:
    """What the manifests hold."""

    objects: int = 0
    bytes: int = 0
    unsized: int = 0  # objects whose size is not known
    without_digests: int = 0  # objects that are in no manifest
    read_now: int = 0  # objects whose digests are from the verification alone
    percent: bool = False  # whether a key holds `%`
    digest: str = ""  # SHA-256 of manifest-sha256.txt: the digest of digests


def write_manifests(con: duckdb.DuckDBPyConnection, folder: Path) -> Bag:
    """Writes the manifests and the lists of objects beside them, from `done` (objects.py).

    Lines are `DIGEST  data/KEY`, sorted by the bytes of the key, one for each key. An object is in both manifests or in
    none (RFC 8493, section 2.1.3: a manifest lists every file), and then in WITHOUT. READ_NOW lists those whose digests
    nothing but the verification knows. Only LF and CR are encoded in a key, as `%0A` and `%0D`; see :func:`declare`.
    """
    found = con.execute("SELECT key, sha256, md5, size, etag, read_now FROM done ORDER BY key, recorded_at DESC")
    bag, digest, last = Bag(), hashlib.sha256(), None
    with (
        (folder / SHA256).open("wb") as sha256s,
        (folder / MD5).open("wb") as md5s,
        (folder / WITHOUT).open("w", encoding="utf-8", newline="") as without_file,
        (folder / READ_NOW).open("w", encoding="utf-8", newline="") as read_file,
    ):
        without, read = csv.writer(without_file), csv.writer(read_file)
        without.writerow(("key", "size", "md5", "sha256", "etag"))
        read.writerow(("key", "size", "md5", "sha256"))
        while lines := found.fetchmany(LINES):
            of_sha256, of_md5 = [], []
            for key, sha256, md5, size, etag, read_now in lines:
                if key == last:  # several rows share the object; the latest outcome counts
                    continue
                last = key
                if not (sha256 and md5):
                    without.writerow(map(spreadsheet_safe, (key, size, md5, sha256, etag)))
                    bag.without_digests += 1
                    continue
                path = key.replace("\n", "%0A").replace("\r", "%0D")
                of_sha256.append(f"{sha256}  data/{path}\n")
                of_md5.append(f"{md5}  data/{path}\n")
                bag.objects += 1
                bag.bytes += size or 0
                bag.unsized += size is None
                bag.percent = bag.percent or "%" in path
                if read_now:
                    read.writerow(map(spreadsheet_safe, (key, size, md5, sha256)))
                    bag.read_now += 1
            piece = "".join(of_sha256).encode()
            digest.update(piece)
            sha256s.write(piece)
            md5s.write("".join(of_md5).encode())
    for name, count in ((WITHOUT, bag.without_digests), (READ_NOW, bag.read_now)):
        if not count:
            (folder / name).unlink()
    bag.digest = digest.hexdigest()
    return bag


def declare(folder: Path, bag: Bag, info: Mapping[str, str], made_on: date) -> None:
    """Writes bagit.txt and bag-info.txt; the values of ``info`` have one line.

    | keys | version | reason |
    |---|---|---|
    | without `%` | 1.0 | RFC 8493 |
    | one with `%` | 0.97 | 1.0 wants `%25` for `%`, which neither bagit.py nor sha256sum nor rclone decodes |

    Version 0.97 (draft-kunze-bagit-14) takes a name as it is.
    """
    version = "0.97" if bag.percent else "1.0"
    text = f"BagIt-Version: {version}\nTag-File-Character-Encoding: UTF-8\n"
    (folder / "bagit.txt").write_text(text, encoding="utf-8")
    lines = {**info, "Bagging-Date": made_on.isoformat()}
    if not bag.unsized:
        lines["Payload-Oxum"] = f"{bag.bytes}.{bag.objects}"
    text = "".join(f"{name}: {value}\n" for name, value in lines.items())
    (folder / "bag-info.txt").write_text(text, encoding="utf-8")


def write_tag_manifest(folder: Path, names: Sequence[str]) -> None:
    """Writes the tag manifest over these files."""
    lines = [f"{_digest(folder / name)}  {name}\n" for name in sorted(names)]
    (folder / TAGS).write_text("".join(lines), encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest: Any = hashlib.file_digest(file, "sha256")
        return str(digest.hexdigest())
