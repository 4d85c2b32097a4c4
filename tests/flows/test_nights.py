"""Nights by the command: what left the list goes where that is asked for, and a night that refuses says why."""

from __future__ import annotations

from demo.origin import Origin
from tests.flows.project import Project, serve


def test_a_night_deletes_what_left_the_list(project: Project, origin: Origin) -> None:
    """Exit code 0 and a list of what went; with a list that is cut off exit code 1, the reason, and nothing deleted."""
    rows, bodies = serve(origin, 30)
    project.manifest(rows)
    project.job(mode="delta", delta={"delete_gone": True, "max_delete": "10%"})
    project.ferry("run", "job.yaml").expect(0)
    gone = rows.pop(7)["url"].rpartition("/")[2]
    project.manifest(rows)
    night = project.ferry("run", "job.yaml", "--json").expect(0).json
    assert (night["night"]["deleted"], night["swept"]["listed"]) == (1, "reports/run-000002/gone.csv")
    assert "1 deleted, whose rows left the list (reports/run-000002/gone.csv)" in night["message"]
    assert gone in (project.state / night["swept"]["listed"]).read_text()
    del bodies[f"images/{gone}"]
    assert project.stored() == bodies
    project.manifest(rows[:10])
    refused = project.ferry("run", "job.yaml").expect(1)
    assert "gone from the list: 19, 0 of them deleted" in refused.text
    assert "Nothing was deleted of 19 copies" in refused.text
    assert "10 rows where it had 29" in refused.text
    assert project.stored() == bodies


def test_a_list_that_cannot_be_had_fails_the_night(project: Project, origin: Origin) -> None:
    """It says so with exit code 2, and deletes nothing: the list of the last night is not taken instead."""
    rows, bodies = serve(origin, 3)
    project.manifest(rows)
    project.job(mode="delta", delta={"delete_gone": True, "max_delete": "100%"})
    project.ferry("run", "job.yaml").expect(0)
    (project.folder / "products.csv").unlink()
    before = origin.total
    assert "does not exist" in project.ferry("run", "job.yaml").expect(2).text
    project.job(
        mode="delta", manifest="http://127.0.0.1:9/products.csv", delta={"delete_gone": True, "max_delete": "100%"}
    )
    assert "cannot be fetched" in project.ferry("run", "job.yaml").expect(2).text
    assert project.stored() == bodies
    assert origin.total == before
