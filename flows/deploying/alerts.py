"""Ferry's alarms as data: what each automation waits for, and what it says then (docs/how-to/alerts.md).

The texts are Prefect's Jinja templates. They are rendered by the Prefect server, which knows nothing of Ferry: all
that they say is in Prefect's own objects, in a state's message, or in the event that Ferry emits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from prefect.events.actions import ActionTypes, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

TAG = "ferry"
TO_BEGIN = ("Scheduled", "AwaitingRetry", "Late", "Pending")
CONTINUED = (*TO_BEGIN, "Running", "Completed", "Failed", "Cancelled")
BEGUN = ("Running", "Completed", "Failed", "Crashed", "Cancelled")
OVER = ("Completed", "Failed", "TimedOut", "Crashed", "Cancelled", "Cancelling", "Paused", "Suspended")


def _cases(*cases: tuple[str, str], otherwise: str) -> str:
    """The text of the first condition that holds."""
    first = "".join(f"{{% elif {condition} %}}{text}" for condition, text in cases)
    return first.replace("{% elif", "{% if", 1) + f"{{% else %}}{otherwise}{{% endif %}}"


# Each text is three lines: what happened, where to look, what to do.
WHOSE = "{{ flow.name }}/{{ deployment.name }}"
NAME = "{{ flow_run.name }}"
STATE = "{{ flow_run.state.name }}"
CRASHED = "flow_run.state.name == 'Crashed'"
MESSAGE = "{% set m = (flow_run.state.message or 'no reason was given')|replace('\\n', ' ') %}"
OVER_BUDGET = "'(budget ' in m and ' pending' not in m"  # tasks/reporting/text.py, Report.message
FAILED_SUBJECT = f"{MESSAGE}Ferry: {NAME} " + _cases(
    (CRASHED, "crashed"), (OVER_BUDGET, "is over its failure budget"), otherwise="failed"
)
FAILED = MESSAGE + WHOSE + " ended as " + STATE + ": {{ m }}"
AGAIN = "run it again: it goes on where this one stopped"
FAILED_DO = _cases(
    (CRASHED, f"read the worker's log: the automation that continues such runs did not. Then {AGAIN}"),
    # what flows/migrate.py, failure(), puts in front; and Prefect, of parameters that make no job
    ("m.startswith('UserError: ')", "mend what it names, and run it again. Nothing has moved"),
    ("m.startswith('Validation of flow parameters ')", "mend the job, and run it again. Nothing has moved"),
    ("m.startswith('LeaseHeld: ')", "nothing, if the other run is meant to be on. This one is to be run again"),
    ("m.startswith('Fatal: ')", f"mend the destination, the credentials or the disk that it names, and {AGAIN}"),
    ("m.startswith('FerryError: ')", "run it again. If that ends likewise, report it with the run's log"),
    ("flow.name == 'verify'", "run migrate for the job: it repairs what is missing or altered. Then verify again"),
    (
        OVER_BUDGET,
        "see in its Artifacts what the failures have in common, mend it at the origin or in the list, and run it with "
        "retry_failed",
    ),
    otherwise=AGAIN,
)
NOT_STARTED = _cases(
    ("not flow_run", "A run that was due has been deleted: its schedule was switched off, or somebody deleted it."),
    otherwise=WHOSE + " was due at {{ flow_run.expected_start_time.strftime('%Y-%m-%d %H:%M') }} UTC and has not "
    f"started: its state is {STATE}.",
)
NOT_STARTED_DO = _cases(
    ("not flow_run", "nothing, if that was meant"),
    (
        "flow_run.state.name == 'AwaitingConcurrencySlot'",
        "another run of the deployment is on, or died less than five minutes ago. Wait for it, or cancel one of them",
    ),
    (
        "flow_run.state.name == 'Pending'",
        "a worker took it and did not start it. Read the worker's log, cancel the run, and run the deployment again",
    ),
    otherwise="see that a worker of its pool ({{ flow_run.work_pool_name }}) is running: it takes the run then",
)
SILENT = f"{WHOSE}: nothing was heard of its run {NAME} for TIME."
SILENT_DO = (
    "see that a worker of its pool ({{ flow_run.work_pool_name }}) is running: it takes the run then. If the run's "
    "process is there, leave it alone: runs go on without Prefect's server"
)


def _page(ui: str) -> str:
    """The run's page, by what the server knows of its own address, else by ours."""
    return "{{ (flow_run|ui_url) or '" + ui + "/runs/flow-run/' ~ event.resource.id.split('.')[-1] }}"


def _body(what: str, ui: str, do: str) -> str:
    return f"{what}\nLook: {_page(ui)}\nDo: {do}."


def full_name(name: str, project: str) -> str:
    """What a project's automation is called: several projects may share a server."""
    return f"{name} ({project})"


def is_named(full: str, name: str) -> bool:
    """Is that a name of this automation, of any project? Names without a project are of Ferry's first version."""
    return full == name or full.startswith(f"{name} (")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long something may be missing before it is an alarm; 10 s is the least that Prefect takes."""

    start_s: float = 3600.0
    rescue_s: float = 60.0  # until a run that died continues (flows/deploying/rescue.py)
    crash_s: float = 180.0  # longer than that
    lost_s: float = 600.0  # three heartbeats of Prefect's 180 s, and the time that they take
    heartbeat_s: float = 780.0  # longer than that, by what a worker needs to begin the run again


@dataclass(frozen=True, slots=True)
class Alarm:
    """One automation, before it is anybody's."""

    name: str
    description: str
    trigger: EventTrigger
    subject: str
    body: str

    def automation(self, project: str, blocks: Sequence[UUID], *, enabled: bool) -> AutomationCore:
        """As Prefect takes it."""
        actions = [
            SendNotification(type="send-notification", block_document_id=block, subject=self.subject, body=self.body)
            for block in blocks
        ]
        return core(full_name(self.name, project), self.description, self.trigger, actions, enabled=enabled)


def core(
    name: str, description: str, trigger: EventTrigger, actions: Sequence[ActionTypes], *, enabled: bool
) -> AutomationCore:
    """An automation of Ferry's. All is set, defaults too: an update leaves out what is not."""
    return AutomationCore(
        name=name,
        description=description,
        enabled=enabled,
        tags=[TAG],
        trigger=trigger,
        actions=list(actions),
        actions_on_trigger=[],
        actions_on_resolve=[],
    )


def alarms(deployments: Collection[UUID], ui: str, patience: Patience | None = None) -> list[Alarm]:
    """The alarms of these deployments' runs. ``ui``: where people find the pages, for a server that does not know."""
    wait = patience or Patience()
    return [
        Alarm(
            "Ferry: a run failed",
            "A run ended as Failed: failures over its budget, rows pending, a job that cannot be used.",
            trigger(deployments, Posture.Reactive, expect=states("Failed", "TimedOut")),
            FAILED_SUBJECT,
            _body(FAILED, ui, FAILED_DO),
        ),
        Alarm(
            "Ferry: a run crashed",
            f"A run's process died, and no other process had continued the run {words(wait.crash_s)} later.",
            trigger(
                deployments,
                Posture.Proactive,
                after=states("Crashed"),
                expect=states(*CONTINUED),
                within_s=wait.crash_s,
            ),
            FAILED_SUBJECT,
            _body(FAILED, ui, FAILED_DO),
        ),
        Alarm(
            "Ferry: a run did not start",
            f"A run was due, and had not started {words(wait.start_s)} later. A schedule that is off has no runs.",
            trigger(
                deployments,
                Posture.Proactive,
                after=states("Late", "AwaitingConcurrencySlot", "AwaitingRetry", "Pending"),
                expect=states(*BEGUN),
                within_s=wait.start_s,
            ),
            f"Ferry: {WHOSE} did not start",
            _body(NOT_STARTED, ui, NOT_STARTED_DO),
        ),
        Alarm(
            "Ferry: a run gives no sign of life",
            f"No heartbeat from a run for {words(wait.heartbeat_s)}, nor from one that continues it.",
            trigger(
                deployments,
                Posture.Proactive,
                after=states("heartbeat"),
                expect=states("heartbeat", *OVER),
                within_s=wait.heartbeat_s,
            ),
            f"Ferry: {NAME} gives no sign of life",
            _body(SILENT.replace("TIME", words(wait.heartbeat_s)), ui, SILENT_DO),
        ),
    ]


def states(*names: str) -> list[str]:
    """The events of runs that enter these states."""
    return [f"prefect.flow-run.{name}" for name in names]


def trigger(
    deployments: Collection[UUID],
    posture: Posture,
    *,
    expect: Sequence[str],
    after: Sequence[str] = (),
    within_s: float = 0.0,
    each: bool = True,
    threshold: int = 1,
) -> EventTrigger:
    """``each``: runs count one by one; else those of all these deployments together."""
    return EventTrigger.model_validate(
        {
            "type": "event",
            "posture": posture,
            "after": set(after),
            "expect": set(expect),
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {
                "prefect.resource.role": "deployment",
                "prefect.resource.id": sorted({f"prefect.deployment.{deployment}" for deployment in deployments}),
            },
            "for_each": {"prefect.resource.id"} if each else set(),
            "threshold": threshold,
            "within": timedelta(seconds=within_s),
        }
    )


def words(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds > 60 and not seconds % 60 else f"{seconds:.0f} seconds"
