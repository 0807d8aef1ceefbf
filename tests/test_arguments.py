"""Checks of what users pass in, without a pool."""

from __future__ import annotations

import math
import signal
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from aiopool import AioPool, Inline
from aiopool.arguments import at_least, fraction, keywords_of, patience, seconds, signal_number, size

TOO_LARGE = Fraction(10**400)


class Four:
    """An integer of another library, as NumPy has them."""

    def __index__(self) -> int:
        return 4


def test_integers_of_other_libraries_become_ints() -> None:
    """What is kept, sent and shown is Python's own."""
    for number in (at_least(1, "processes", Four()), size("chunksize", Four())):
        assert (type(number), number) == (int, 4)
    options: dict[str, Any] = {"processes": Four(), "idle_timeout": Fraction(1, 2), "min_processes": Four()}
    pool = AioPool(**options, maxtasksperchild=Four(), retries=Four(), max_pending=Four())  # type: ignore[arg-type]
    assert type(pool.processes) is int
    assert type(pool._limits.retries) is int
    assert type(pool._engine.policy.maxtasksperchild) is int


@pytest.mark.parametrize("value", [True, 4.0, "4", Decimal(4), None])
def test_what_is_no_integer_is_refused(value: Any) -> None:
    """A truth value, too."""
    with pytest.raises(TypeError, match=r"^processes must be an int, not "):
        at_least(1, "processes", value)
    with pytest.raises(TypeError, match=r"^number must be that of a signal"):
        signal_number(value)


def test_real_numbers_of_other_kinds_become_floats() -> None:
    """An int stays one."""
    for checked in (seconds("timeout", Fraction(1, 2)), fraction("part", Fraction(1, 2)), patience(Fraction(1, 2))):  # type: ignore[arg-type]
        assert (type(checked), checked) == (float, 0.5)
    assert type(seconds("timeout", 3)) is int


@pytest.mark.parametrize("check", [lambda value: seconds("timeout", value), patience, lambda v: fraction("timeout", v)])
@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "not True"), ("1", "not '1'"), (1j, "not 1j"), (Decimal(1), r"not Decimal\('1'\): make it a float")],
)
def test_what_is_no_real_number_is_refused(check: Any, value: Any, text: str) -> None:
    """With the value, and how to make it one."""
    with pytest.raises(TypeError, match=f"^timeout must be a number .*, {text}$"):
        check(value)


def test_numbers_that_are_out_of_range_are_refused() -> None:
    """Whatever their type."""
    for value, text in [
        (TOO_LARGE, "finite"),
        (-TOO_LARGE, "more than 0"),
        (Fraction(0), "more than 0 seconds, not 0"),
    ]:
        with pytest.raises(ValueError, match=text):
            seconds("timeout", value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="part must be a number from 0 to 1, not 3/2"):
        fraction("part", Fraction(3, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout must be a number of seconds, or None, not nan"):
        patience(math.nan)


def test_waits_take_what_no_clock_can_be_asked_for() -> None:
    """It is as long as it takes; and less than no time is none."""
    for endless in (None, math.inf, 10**400, TOO_LARGE, sys.float_info.max):
        assert patience(endless) is None  # type: ignore[arg-type]
    assert [patience(short) for short in (0, -1, -math.inf, -(10**400))] == [0, 0, 0, 0]


def test_sizes_are_no_larger_than_anything_can_be() -> None:
    """What counts items takes no more."""
    assert size("chunksize", 10**30) == sys.maxsize


def test_keywords_are_a_mapping_of_names() -> None:
    """Any mapping, and whatever has keys, as for a call; and a copy, for what is passed may change."""

    class Keyed:
        def keys(self) -> list[str]:
            return ["a"]

        def __getitem__(self, name: str) -> str:
            return name

    given = {"a": 1}
    assert keywords_of(given) == given
    assert keywords_of(given) is not given
    assert keywords_of(Keyed()) == {"a": "a"}  # type: ignore[arg-type]


def test_a_signal_has_its_number() -> None:
    """By name or not."""
    assert signal_number(signal.SIGTERM) == signal_number(15) == 15


def test_a_truth_value_must_be_one() -> None:
    """A text such as "no" would count as true."""
    with pytest.raises(TypeError, match=r"^pickled must be True or False, not 'no'$"):
        Inline(pickled="no")  # type: ignore[arg-type]
    dask = pytest.importorskip("aiopool.backends.dask")
    with pytest.raises(TypeError, match=r"^restart_cancelled must be True or False, not 1$"):
        dask.DaskBackend(restart_cancelled=1)
