"""The sample of `ferry check`: rows of all hosts to judge, more rows to measure, and nothing that is done."""

from __future__ import annotations

from pathlib import Path

from ferry.state.plan_file import ChunkRef, Planned, Sample
from tests.support import helpers


def drawn(tmp_path: Path, rows: int, *, planned: Planned) -> tuple[Sample, list[str], list[str]]:
    sample = planned.sample
    assert sample is not None
    state = helpers.directory_state(tmp_path, "sample")

    def sources(refs: list[ChunkRef]) -> list[str]:
        return [row.source for ref in refs for row in helpers.chunk_rows(state, ref)]

    judged, measured = sources(sample.chunks), sources(sample.more)
    assert len(judged) == rows
    assert not set(judged) & set(measured)
    return sample, judged, measured


def test_all_hosts_are_in_the_sample(tmp_path: Path) -> None:
    """A small host has its rows in the sample, and the plan in the job's state does not change."""
    lines = [[f"https://big.example/{n}.jpg"] for n in range(500)] + [["https://small.example/one.jpg"]]
    helpers.write_list(tmp_path / "list.csv", lines)
    job = helpers.make_job(manifest=str(tmp_path / "list.csv"))
    state, folder = helpers.directory_state(tmp_path), str(tmp_path / "sample")
    planned = helpers.plan(job, state, 0, dry=True, sample=50, sample_folder=folder)
    sample, judged, measured = drawn(tmp_path, 50, planned=planned)
    assert sample.hosts == {"big.example": 500, "small.example": 1}
    assert "https://small.example/one.jpg" in judged
    assert judged[:5] != [f"https://big.example/{n}.jpg" for n in range(5)]  # not the first ones
    assert len(measured) == 451
    assert not list(state.root.rglob("*.parquet"))
    assert Planned.decode(planned.encode()).sample == sample
    again = helpers.plan(job, state, 0, dry=True, sample=50, sample_folder=folder)
    assert again.sample == sample


def test_only_rows_to_do(tmp_path: Path) -> None:
    """Rows that are done are left out, pending rows of chunks and rows with known sizes are counted."""
    lines = [[f"https://img.example/{n}.jpg", "1000"] for n in range(60)]
    helpers.write_list(tmp_path / "list.csv", lines, ("url", "content_length"))
    job = helpers.make_job(manifest=str(tmp_path / "list.csv"), chunk_rows=20)
    state = helpers.directory_state(tmp_path)
    first = helpers.plan(job, state, 1)
    helpers.settle(state, first.chunks[0], 1)
    done = {row.source for row in helpers.chunk_rows(state, first.chunks[0])}
    more = [["https://new.example/one.jpg", ""]]
    helpers.write_list(tmp_path / "list.csv", [*lines, *more], ("url", "content_length"))
    folder = str(tmp_path / "sample")
    planned = helpers.plan(job, state, 0, dry=True, sample=100, sample_folder=folder)
    sample, judged, measured = drawn(tmp_path, 41, planned=planned)
    assert sample.hosts == {"img.example": 40, "new.example": 1}
    assert not done & set(judged)
    assert measured == []
    assert (sample.sized_rows, sample.sized_bytes) == (40, 40_000)


def test_nothing_to_do(tmp_path: Path) -> None:
    helpers.write_list(tmp_path / "list.csv", [["https://img.example/1.jpg"]])
    job = helpers.make_job(manifest=str(tmp_path / "list.csv"))
    state = helpers.directory_state(tmp_path)
    helpers.settle(state, helpers.plan(job, state, 1).chunks[0], 1)
    planned = helpers.plan(job, state, 0, dry=True, sample=9, sample_folder=str(tmp_path / "sample"))
    sample, _, _ = drawn(tmp_path, 0, planned=planned)
    assert sample == Sample([], [], {}, 0, 0, 0)


def test_many_hosts(tmp_path: Path) -> None:
    """Of more than 50 hosts, the smallest are sampled together."""
    lines = [[f"https://h{host}.example/{host}-{n}.jpg"] for host in range(60) for n in range(5 if host < 50 else 2)]
    helpers.write_list(tmp_path / "list.csv", lines)
    job = helpers.make_job(manifest=str(tmp_path / "list.csv"))
    folder = str(tmp_path / "sample")
    state = helpers.directory_state(tmp_path)
    planned = helpers.plan(job, state, 0, dry=True, sample=160, sample_folder=folder)
    sample, judged, _ = drawn(tmp_path, 160, planned=planned)
    assert len(sample.hosts) == 51
    assert sample.hosts[""] == 20
    assert sum(int(source.split(".")[0].removeprefix("https://h")) >= 50 for source in judged) >= 3
