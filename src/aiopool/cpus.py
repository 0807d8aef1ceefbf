"""How many CPUs this process may really use: those that it may run on, or fewer where its container has a quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["usable_cpus"]

MEMBERSHIP = Path("/proc/self/cgroup")
"""Names the control groups that this process is in."""

HIERARCHIES = Path("/sys/fs/cgroup")
"""Has a directory for each, with a file for each of its limits. (See cgroups(7); both versions are met in the wild.)"""


def usable_cpus() -> int:
    """Return how many CPUs this process may use.

    That is how many it may run on (its affinity), or fewer if a control group that it is in, such as its container,
    has a quota of CPU time. A part of a CPU counts as one: a quota of 1.5 keeps two workers busy.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cpus, *map(math.ceil, _quotas())]))


def _quotas() -> Iterator[float]:
    """Yield the quotas of all control groups that this process is in, in CPUs."""
    for root, path in _hierarchies():
        group = root / path.lstrip("/")
        groups = [group, *group.parents]  # a quota of those above counts, too
        for each in groups[: groups.index(root) + 1]:
            quota, period = _quota(each)
            if quota.isdigit() and period.isdigit() and int(period):  # else there is none: "max", -1, no such file
                yield int(quota) / int(period)


def _hierarchies() -> Iterator[tuple[Path, str]]:
    """Yield where a hierarchy of groups with quotas may be mounted, and where in it this process is."""
    for line in _read(MEMBERSHIP).splitlines():
        _number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield HIERARCHIES, path
            yield HIERARCHIES / "unified", path
        elif "cpu" in controllers.split(","):
            yield HIERARCHIES / "cpu", path


def _quota(group: Path) -> tuple[str, str]:
    """Return a group's quota and the period that it is for, in microseconds."""
    if text := _read(group / "cpu.max"):
        quota, _, period = text.strip().partition(" ")
        return quota, period
    return _read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # there is none
        return ""
