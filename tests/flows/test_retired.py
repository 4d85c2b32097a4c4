"""Which deployments `ferry deploy` may change or delete, without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import StateType

from ferry.core import UserError
from flows.deploying import retired
from flows.deploying.deployments import foreign

USED = {StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED}


def deployment(*tags: str, flow: Any = None, name: str = "a", on: bool = True) -> Any:
    schedules = [SimpleNamespace(active=on)]
    return SimpleNamespace(id=uuid4(), name=name, flow_id=flow, tags=["ferry", *tags], schedules=schedules)


class Server(SimpleNamespace):
    """A Prefect server with one flow run, whose answers obey the filters that matter here."""

    def read_flow_runs(self, flow_run_filter: Any, **_: Any) -> list[Any]:
        is_asked = self.run.deployment_id in flow_run_filter.deployment_id.any_
        return [self.run] if is_asked and self.run.state_type in flow_run_filter.state.type.any_ else []

    def read_flows(self, flow_filter: Any) -> list[Any]:
        return [flow for flow in self.flows if flow.name in flow_filter.name.any_]

    def read_deployments(self, flow_filter: Any, deployment_filter: Any, **_: Any) -> list[Any]:
        names = {flow.id: flow.name for flow in self.flows}
        return [
            one
            for one in self.deployments
            if names[one.flow_id] in flow_filter.name.any_ and {*deployment_filter.tags.all_} <= {*one.tags}
        ]

    def delete_deployment(self, id_: Any) -> None:
        self.deleted.append(id_)


@pytest.mark.parametrize("kind", StateType)
def test_a_deployment_in_use_stays(kind: StateType) -> None:
    """One whose run is live is not retired, whatever the answer; runs that have ended or are only planned are none."""
    one = deployment()
    asked: list[str] = []
    server: Any = Server(run=SimpleNamespace(deployment_id=one.id, state_type=kind))

    def ask(text: str) -> bool:
        asked.append(text)
        return True

    if kind in USED:
        with pytest.raises(UserError, match="migrate/a has a live run"):
            retired.check(server, {"migrate/a": one}, ask)
        assert not asked
    else:
        retired.check(server, {"migrate/a": one}, ask)
        assert "migrate/a: its schedule is on" in asked[0]


@pytest.mark.parametrize(("gone", "answer", "fails"), [(1, False, True), (1, True, False), (0, False, False)])
def test_the_operator_is_asked(gone: int, answer: bool, fails: bool) -> None:
    """A no deletes nothing, and if no deployment is gone, nothing is asked."""
    given = {f"migrate/{number}": deployment() for number in range(gone)}
    server: Any = Server(run=SimpleNamespace(deployment_id=None, state_type=StateType.RUNNING))
    if fails:
        with pytest.raises(UserError, match="--retire needs a yes"):
            retired.check(server, given, lambda _: answer)
    else:
        retired.check(server, given, lambda _: answer)


@pytest.mark.parametrize(
    ("act", "what", "deleted"),
    [
        (lambda server, gone: retired.retire(server, gone.items(), dry_run=False), "removed", 1),
        (lambda server, gone: retired.retire(server, gone.items(), dry_run=True), "removed", 0),
        (lambda server, gone: retired.named(gone), "unchanged", 0),
    ],
)
def test_what_is_deleted(act: Callable[[Any, Any], Any], what: str, deleted: int) -> None:
    """Only what is retired, and not in a dry run."""
    one, server = deployment(), Server(deleted=[])
    assert [change.what for change in act(server, {"migrate/a": one})] == [what]
    assert server.deleted == [one.id] * deleted


def test_deployments_of_others_are_not_this_projects() -> None:
    """Of two projects with jobs, and deployments made otherwise, only those with the project's own tag are found."""
    flow = SimpleNamespace(id=uuid4(), name="migrate")
    mine, other, by_hand = (
        deployment(*tags, flow=flow.id, name=tags[0]) for tags in (["jobs:shop"], ["jobs:b"], ["x"])
    )
    server: Any = Server(flows=[flow], deployments=[mine, other, by_hand])
    assert retired.made_before(server, "shop") == {"migrate/jobs:shop": mine}


@pytest.mark.parametrize(
    ("tags", "file", "is_foreign"),
    [(["jobs:shop"], "a.yaml", False), (["jobs:b"], "a.yaml", True), ([], "a.yaml", True), ([], None, False)],
)
def test_a_name_that_is_taken(tags: list[str], file: str | None, is_foreign: bool) -> None:
    """A job file changes no deployment of another project or of prefect.yaml; prefect.yaml changes its own."""
    wanted: Any = SimpleNamespace(name="migrate/a", file=file and Path(file), mark="jobs:shop")
    assert bool(foreign([wanted], {"migrate/a": deployment(*tags)})) is is_foreign
    assert foreign([wanted], {}) == []
