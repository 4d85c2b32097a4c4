"""Child processes of a run: the planner, its messages, and the rule for adding transfer processes."""

from ferry.processes.autoscaler import MIN_IDLE_CPU, MIN_LOOP_CPU, Autoscaler, cores, idle_s
from ferry.processes.ipc import Message, read_message, write_message
from ferry.processes.planner_process import PlannerProcess, PlanRequest

__all__ = [
    "MIN_IDLE_CPU",
    "MIN_LOOP_CPU",
    "Autoscaler",
    "Message",
    "PlanRequest",
    "PlannerProcess",
    "cores",
    "idle_s",
    "read_message",
    "write_message",
]
