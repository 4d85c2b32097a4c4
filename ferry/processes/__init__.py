"""Planning and folding in a child process, whose memory ends with it."""

from ferry.processes.growth import Growth, cores, idle_s
from ferry.processes.ipc import Errand, read_message, write_message
from ferry.processes.planner_process import Child, Request

__all__ = ["Child", "Errand", "Growth", "Request", "cores", "idle_s", "read_message", "write_message"]
