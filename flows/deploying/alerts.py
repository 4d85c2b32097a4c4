"""Ferry's alerts as data: the trigger and the text of each automation (docs/how-to/alerts.md).

The texts are Prefect's Jinja templates. The Prefect server renders them without Ferry: all their data come from
Prefect's own objects, a state's message, or the event that Ferry emits.
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
    """Returns a template that shows the text of the first condition that holds."""
    first = "".join(f"{{% elif {condition} %}}{text}" for condition, text in cases)
    return first.replace("{% elif", "{% if", 1) + f"{{% else %}}{otherwise}{{% endif %}}"


# Each text has three lines: what happened, where to look, what to do.
WHOSE = "{{ flow.name }}/{{ deployment.name }}"
NAME = "{{ flow_run.name }}"
STATE = "{{ flow_run.state.name }}"
CRASHED = "flow_run.state.name == 'Crashed'"
MESSAGE = "{% set m = (flow_run.state.message or 'no reason was given')|replace('\\n', ' ') %}"
OVER_BUDGET = "' that failure_budget allows' in m and ' pending' not in m"  # tasks/reporting/text.py, Report.verdict
FAILED_SUBJECT = f"{MESSAGE}Ferry: {NAME} " + _cases(
    (CRASHED, "crashed"), (OVER_BUDGET, "is over its failure budget"), otherwise="failed"
)
# Ferry's messages begin with the verdict, Prefect's own do not.
FAILED = (
    MESSAGE
    + WHOSE
    + _cases(("m.startswith(flow_run.state.name ~ ':')", ": {{ m }}"), otherwise=f" ended as {STATE}: {{{{ m }}}}")
)
AGAIN = "run it again; it resumes where this run stopped"
FAILED_DO = _cases(
    (CRASHED, f"read the worker's log, since the automation did not restart the run. Then {AGAIN}"),
    # flows.migrate writes these prefixes; Prefect writes the second, for parameters that are not a job
    ("m.startswith('UserError: ')", "fix what the message names, and run it again. Nothing was copied"),
    ("m.startswith('Validation of flow parameters ')", "fix the job, and run it again. Nothing was copied"),
    ("m.startswith('LeaseHeld: ')", "if the other run is intended, wait for its end. Then run this one again"),
    ("m.startswith('Fatal: ')", f"fix the destination, the credentials or the disk that it names, and {AGAIN}"),
    ("m.startswith('FerryError: ')", "run it again. If it fails again, report it with the run's log"),
    ("flow.name == 'verify'", "run migrate for the job, which repairs missing and altered objects. Then verify again"),
    (
        OVER_BUDGET,
        "see in the run's Artifacts what the failures have in common, fix it at the origin or in the manifest, and run "
        "it with retry_failed",
    ),
    otherwise=AGAIN,
)
NOT_STARTED = _cases(
    ("not flow_run", "A run that was due was deleted, by hand or because its schedule was switched off."),
    otherwise=WHOSE + " was due at {{ flow_run.expected_start_time.strftime('%Y-%m-%d %H:%M') }} UTC but has not "
    f"started; its state is {STATE}.",
)
NOT_STARTED_DO = _cases(
    ("not flow_run", "nothing, if that was intended"),
    (
        "flow_run.state.name == 'AwaitingConcurrencySlot'",
        "another run of the deployment is live, or died in the last five minutes. Wait for it, or cancel one of them",
    ),
    (
        "flow_run.state.name == 'Pending'",
        "a worker took the run but did not start it. Read its log, cancel the run, and run the deployment again",
    ),
    otherwise="start a worker of its work pool ({{ flow_run.work_pool_name }}), if none is running; it takes the run",
)
SILENT = f"{WHOSE}: its run {NAME} has sent no heartbeat for TIME."
SILENT_DO = (
    "start a worker of its work pool ({{ flow_run.work_pool_name }}), if none is running; it takes the run. If the "
    "run's process is alive, do nothing: a run continues without Prefect's server"
)


def _page(ui: str) -> str:
    """Returns a template for the run's page, at the server's own UI address, else at ``ui``."""
    return "{{ (flow_run|ui_url) or '" + ui + "/runs/flow-run/' ~ event.resource.id.split('.')[-1] }}"


def _body(what: str, ui: str, do: str) -> str:
    return f"{what}\nLook: {_page(ui)}\nDo: {do}."


def full_name(name: str, project: str) -> str:
    """Returns the name of a project's automation; several projects may share a server."""
    return f"{name} ({project})"


def is_named(full: str, name: str) -> bool:
    """Returns whether ``full`` is a name of this automation in any project.

    Ferry's first version made names without a project.
    """
    return full == name or full.startswith(f"{name} (")


@dataclass(frozen=True, slots=True)
class Delays:
    """How long an expected event may be missing before the alert; Prefect accepts at least 10 s."""

    start_s: float = 3600.0
    restart_s: float = 60.0  # until a run that died is restarted (flows.deploying.rescue)
    crash_s: float = 180.0  # longer than restart_s
    machine_s: float = 600.0  # three of Prefect's heartbeats, one each 180 s, and their delay
    heartbeat_s: float = 780.0  # machine_s and the time in which a worker restarts the run


@dataclass(frozen=True, slots=True)
class Alert:
    """The automation of one alert, still without a project and notification blocks."""

    name: str
    description: str
    trigger: EventTrigger
    subject: str
    body: str

    def automation(self, project: str, blocks: Sequence[UUID], *, enabled: bool) -> AutomationCore:
        """Returns Prefect's automation for a project, which notifies these blocks."""
        actions = [
            SendNotification(type="send-notification", block_document_id=block, subject=self.subject, body=self.body)
            for block in blocks
        ]
        return core(full_name(self.name, project), self.description, self.trigger, actions, enabled=enabled)


def core(
    name: str, description: str, trigger: EventTrigger, actions: Sequence[ActionTypes], *, enabled: bool
) -> AutomationCore:
    """Returns an automation with Ferry's tag. Every field is set: an update does not send fields that are unset."""
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


def alerts(deployments: Collection[UUID], ui: str, delays: Delays | None = None) -> list[Alert]:
    """Returns the alerts for the runs of these deployments. ``ui`` is the UI's address, for a server without one."""
    wait = delays or Delays()
    return [
        Alert(
            "Ferry: a run failed",
            "A run ended as Failed: failures over its budget, pending rows, or an unusable job.",
            trigger(deployments, Posture.Reactive, expect=states("Failed", "TimedOut")),
            FAILED_SUBJECT,
            _body(FAILED, ui, FAILED_DO),
        ),
        Alert(
            "Ferry: a run crashed",
            f"A run's process died, and no other process continued the run within {words(wait.crash_s)}.",
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
        Alert(
            "Ferry: a run did not start",
            f"A run was due, and did not start within {words(wait.start_s)}. A schedule that is off creates no runs.",
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
        Alert(
            "Ferry: a run gives no sign of life",
            f"No heartbeat from a run for {words(wait.heartbeat_s)}, and no other process continued it.",
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
    """Returns the names of Prefect's events for runs that enter these states."""
    return [f"prefect.flow-run.{name}" for name in names]


def trigger(
    deployments: Collection[UUID],
    posture: Posture,
    *,
    expect: Sequence[str],
    after: Sequence[str] = (),
    within_s: float = 0.0,
    each: str = "prefect.resource.id",
    threshold: int = 1,
) -> EventTrigger:
    """Returns a trigger for runs of these deployments.

    ``each``: the label of what counts separately, by default each run; "" counts all of them together.
    """
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
            "for_each": {each} if each else set(),
            "threshold": threshold,
            "within": timedelta(seconds=within_s),
        }
    )


def words(seconds: float) -> str:
    """Returns a duration such as `3 minutes` or `10 seconds`."""
    return f"{seconds / 60:.0f} minutes" if seconds > 60 and not seconds % 60 else f"{seconds:.0f} seconds"
