"""Where a benchmark ran: see `fleet/machine.py`."""

from fleet.machine import machine, versions

__all__ = ["machine", "versions"]
