"""What is remembered of functions that are called."""

from __future__ import annotations

from functools import partial

import pytest

import jobs
from aiopool import packing
from aiopool.carrying import Carrier
from aiopool.hooks import Hooks
from aiopool.packing import Packer
from aiopool.pickling import PLAIN


class Home:
    """Has no shares."""

    def forget(self, share: int) -> None:
        """Be told of none."""


class Worker:
    """Has a method."""

    def work(self) -> None:
        """Do nothing."""

    def __call__(self) -> None:
        """Do nothing."""


@pytest.fixture
def packer() -> Packer:
    """One that knows no function yet."""
    return Packer(Home(), Carrier(()), PLAIN, Hooks(()))


def test_whatever_runs_the_same_function_has_its_pace(packer: Packer) -> None:
    """Methods of all instances, partials, instances that can be called."""
    assert packer.pace_of(Worker().work) is packer.pace_of(Worker().work) is packer.pace_of(Worker.work)
    assert packer.pace_of(partial(jobs.square, 3)) is packer.pace_of(partial(partial(jobs.square), 4))
    assert packer.pace_of(Worker()) is packer.pace_of(Worker())
    assert len({id(packer.pace_of(func)) for func in (Worker().work, Worker(), jobs.square)}) == 3


def test_only_so_many_functions_are_remembered(packer: Packer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that makes new ones all the time does not fill the memory with them."""
    monkeypatch.setattr(packing, "MOST_KNOWN", 2)
    first = packer.find(jobs.square)
    assert packer.find(jobs.square) is first
    for func in (jobs.add, len):
        packer.find(func)
    assert packer.find(jobs.square) is not first
    assert len(packer._known) <= 2
    assert len(packer._paces) <= 2
