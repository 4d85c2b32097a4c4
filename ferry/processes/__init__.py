"""Planning and folding in a child process, whose memory ends with it."""

from ferry.processes.growth import Growth, cores, idle_s
from ferry.processes.ipc import Message, read_message, write_message
from ferry.processes.planner_process import PlannerProcess, PlanRequest

__all__ = ["Growth", "Message", "PlanRequest", "PlannerProcess", "cores", "idle_s", "read_message", "write_message"]
