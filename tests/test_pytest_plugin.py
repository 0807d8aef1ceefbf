"""The fixtures that the package brings along for its users' tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points

import pytest

JOBS = """
import os
from aiopool import AioPool

def square(x):
    return x * x

def pid(_item=None):
    return os.getpid()
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a file of tests with some plugins and lines of the ini-file."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # or what is installed here would decide
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path[1:]))

    def run_tests(tests: str, *plugins: str, ini: str = "") -> pytest.RunResult:
        scope = "asyncio_default_fixture_loop_scope = function" if "asyncio" in plugins else ""
        pytester.makeini(f"[pytest]\n{scope}\n{ini}")
        pytester.makepyfile(some_jobs=JOBS, test_it=f"from some_jobs import *\nimport pytest\n{tests}")
        chosen = [argument for plugin in plugins for argument in ("-p", plugin)]
        return pytester.runpytest_subprocess("-p", "aiopool.pytest_plugin", "-W", "error", *chosen)

    return run_tests


def test_pytest_finds_it() -> None:
    """By the package's entry point."""
    assert entry_points(group="pytest11")["aiopool"].value == "aiopool.pytest_plugin"


@pytest.mark.parametrize("ini", ["asyncio_mode = auto", "asyncio_mode = strict"])
def test_a_test_has_a_pool_of_its_own(run: Run, ini: str) -> None:
    """In its loop, in both modes of pytest-asyncio."""
    tests = """
pools = []

@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(2))
async def test_pool(aiopool, number):
    assert await aiopool.apply(square, (number,)) == number * number
    assert await aiopool.apply(pid) != os.getpid()
    pools.append(aiopool)
    assert len(set(pools)) == len(pools)

@pytest.mark.asyncio
async def test_inline(aiopool_inline):
    assert await aiopool_inline.apply(pid) == os.getpid()

def test_both_have_ended():
    assert [pool.stats().phase for pool in pools] == ["closed"] * 2
"""
    run(tests, "asyncio", ini=ini).assert_outcomes(passed=4)


@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
def test_a_pool_lives_as_long_as_the_loop_of_the_test(run: Run, scope: str) -> None:
    """Whoever shares the loop, shares the pool."""
    tests = f"""
pytestmark = pytest.mark.asyncio(loop_scope={scope!r})
pools = set()

class TestPool:
    @pytest.mark.parametrize("number", range(3))
    async def test_pool(self, aiopool, aiopool_inline, number):
        assert await aiopool.apply(square, (number,)) == number * number
        assert await aiopool_inline.apply(pid) == os.getpid()
        pools.add(aiopool)
        assert len(pools) == 1
"""
    run(tests, "asyncio", ini="asyncio_mode = auto").assert_outcomes(passed=3)


def test_the_default_scope_of_loops_counts(run: Run) -> None:
    """It is another line of the ini-file."""
    tests = """
pools = set()

@pytest.mark.parametrize("number", range(2))
async def test_pool(aiopool, number):
    pools.add(aiopool)
    assert await aiopool.apply(square, (number,)) == number * number
    assert len(pools) == 1
"""
    run(tests, "asyncio", ini="asyncio_mode = auto\nasyncio_default_test_loop_scope = module").assert_outcomes(passed=2)


def test_it_works_with_the_plugin_of_anyio(run: Run) -> None:
    """On asyncio."""
    tests = """
pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.aiopool(processes=1)
async def test_pool(aiopool):
    assert aiopool.processes == 1
    assert await aiopool.apply(pid) != os.getpid()

async def test_inline(aiopool_inline):
    assert await aiopool_inline.apply(pid) == os.getpid()
"""
    run(tests, "anyio").assert_outcomes(passed=2)
    run(tests, "asyncio", "anyio", ini="asyncio_mode = strict").assert_outcomes(passed=2)


def test_options_come_from_the_ini_file_and_the_marker(run: Run) -> None:
    """The marker's count more."""
    tests = """
@pytest.mark.asyncio
async def test_ini(aiopool):
    assert aiopool.processes == 3
    assert "timeout=5.5" in repr(aiopool.options())

@pytest.mark.asyncio
@pytest.mark.aiopool(processes=1)
async def test_marker(aiopool, aiopool_inline):
    assert aiopool.processes == aiopool_inline.processes == 1
    assert "timeout=5.5" in repr(aiopool.options())

@pytest.mark.asyncio
@pytest.mark.aiopool(2)
async def test_without_a_name(aiopool_inline):
    assert aiopool_inline.processes == 2
"""
    ini = "asyncio_mode = auto\naiopool_options =\n    processes = 3\n    timeout = 5.5\n    context = 'fork'\n"
    run(tests, "asyncio", ini=ini).assert_outcomes(passed=3)


@pytest.mark.parametrize("line", ["processes", "processes = two", "= = ="])
def test_a_bad_line_of_the_ini_file_is_named(run: Run, line: str) -> None:
    """With what is asked for."""
    result = run(
        "async def test_ini(aiopool): ...", "asyncio", ini=f"asyncio_mode = auto\naiopool_options =\n    {line}"
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*aiopool_options must have lines NAME = VALUE*{line!r}*"])


def test_a_marker_at_a_test_whose_loop_is_shared_is_refused(run: Run) -> None:
    """The pool of the others would not have these options; at the module, it may stand."""
    tests = """
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.aiopool(processes=1)
async def test_pool(aiopool): ...
"""
    result = run(tests, "asyncio")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*put the marker aiopool there*"])
    tests = """
pytestmark = [pytest.mark.aiopool(processes=1), pytest.mark.asyncio(loop_scope="module")]

async def test_pool(aiopool):
    assert aiopool.processes == 1
"""
    run(tests, "asyncio").assert_outcomes(passed=1)


def test_without_a_plugin_that_runs_coroutines_it_says_so(run: Run) -> None:
    """Where the fixture is asked for."""
    result = run("def test_pool(aiopool): ...")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the fixture aiopool needs pytest-asyncio, or the marker anyio at the test*"])


LEAVES = """
import asyncio
kept = []

async def test_leaves_workers():
    pool = AioPool(1, context="fork")
    await pool.start()
    kept.append(pool)

def test_they_are_gone():
    assert kept[0].stats().phase == PHASE
"""


def test_a_test_that_leaves_workers_behind_fails(run: Run) -> None:
    """They go, and the next test has its own chance."""
    result = run(LEAVES.replace("PHASE", "'closed'"), "asyncio", ini="asyncio_mode = auto")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["the test has left behind <AioPool running: 1 workers*: use `async with`"])


def test_the_check_can_be_left_out(run: Run) -> None:
    """By a line of the ini-file."""
    tests = LEAVES.replace("PHASE", "'running'") + "    kept[0].abandon()\n"
    run(tests, "asyncio", ini="asyncio_mode = auto\naiopool_check = false").assert_outcomes(passed=2)


def test_pools_of_the_tests_own_fixtures_are_theirs_to_end(run: Run) -> None:
    """However long those live."""
    tests = """
import pytest_asyncio

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mine():
    async with AioPool(1) as pool:
        yield pool

@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("number", range(2))
async def test_pool(mine, number):
    assert await mine.apply(square, (number,)) == number * number
"""
    run(tests, "asyncio").assert_outcomes(passed=2)


def test_it_imports_nothing_for_tests_that_use_no_pool() -> None:
    """What every pytest of the user's would have to wait for."""
    program = (
        "import pytest, sys; before = {*sys.modules}; import aiopool.pytest_plugin; print({*sys.modules} - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=50)
    assert ast.literal_eval(done.stdout) == {"aiopool", "aiopool.pytest_plugin"}
