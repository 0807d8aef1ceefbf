"""How many CPUs may be used, on systems that are made of a few files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiopool import AioPool, cpus


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with eight CPUs and no control groups yet."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    monkeypatch.setattr(cpus, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(cpus, "HIERARCHIES", tmp_path)
    return tmp_path


def write(path: Path, text: str) -> None:
    """Write a file, in a directory that may have to be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.usefixtures("system")
def test_without_control_groups_it_is_the_affinity() -> None:
    """As in a system that has none, or hides them."""
    assert cpus.usable_cpus() == 8


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("max 100000\n", 8),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("1 0\n", 8),
        ("\n", 8),
    ],
)
def test_a_quota_of_the_second_version_counts(system: Path, quota: str, count: int) -> None:
    """A part of a CPU as one; more than there are is no quota, and neither is what makes no sense."""
    write(system / "membership", "0::/pod/box\n")
    write(system / "pod/box/cpu.max", quota)
    assert cpus.usable_cpus() == count


@pytest.mark.parametrize(("quota", "count"), [("-1\n", 8), ("250000\n", 3)])
@pytest.mark.parametrize("controllers", ["cpu", "cpuacct,cpu"])
def test_a_quota_of_the_first_version_counts(system: Path, controllers: str, quota: str, count: int) -> None:
    """Wherever else the same controller is mounted."""
    write(system / "membership", f"7:memory:/other\n4:{controllers}:/box\n0::/\n")
    write(system / "cpu/box/cpu.cfs_quota_us", quota)
    write(system / "cpu/box/cpu.cfs_period_us", "100000\n")
    assert cpus.usable_cpus() == count


def test_the_least_quota_of_all_groups_above_counts(system: Path) -> None:
    """A group cannot use more than those it is in."""
    write(system / "membership", "0::/pod/box\n")
    write(system / "unified/pod/box/cpu.max", "600000 100000\n")
    write(system / "unified/pod/cpu.max", "300000 100000\n")
    write(system / "unified/cpu.max", "400000 100000\n")
    assert cpus.usable_cpus() == 3


def test_a_group_that_is_not_to_be_seen_is_looked_for_at_the_root(system: Path) -> None:
    """In a container, the path is the host's, and the container's own group is mounted at the root."""
    write(system / "membership", "4:cpu:/docker/0123abcd\n")
    write(system / "cpu/cpu.cfs_quota_us", "200000\n")
    write(system / "cpu/cpu.cfs_period_us", "100000\n")
    assert cpus.usable_cpus() == 2


def test_a_pool_has_as_many_workers_by_default(system: Path) -> None:
    """Unless it is told how many."""
    write(system / "membership", "0::/\n")
    write(system / "cpu.max", "300000 100000\n")
    assert AioPool().processes == 3
    assert AioPool(5).processes == 5


def test_a_system_without_affinities_is_asked_for_all_its_cpus(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that does not know them has one."""
    assert system
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cpus.usable_cpus() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpus.usable_cpus() == 1
