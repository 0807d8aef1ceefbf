"""Fixtures for tests that use pools; pytest finds this module by itself.

- ``aiopool`` is a started pool. It lives as long as the loop that the test runs in: with pytest-asyncio that depends on
  the test's ``loop_scope``; with the plugin of anyio it is one for each test.
- ``aiopool_inline`` is the same, but runs calls in this process.

Both take their options from the ini-file's ``aiopool_options``, and from the marker ``aiopool``, whose arguments are
those of `aiopool.AioPool` and go before the file's. Where the loop is shared by a class, a module, a package or all
tests, so is the pool, and the marker has to stand there.

A test that leaves a pool with workers behind fails, and the workers go; ``aiopool_check = false`` in the ini-file
leaves them alone.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from . import AioPool
    from .lifecycle import Lifecycle

SCOPES = ("function", "class", "module", "package", "session")

OPTIONS = "aiopool_options"
CHECK = "aiopool_check"

new_pools: pytest.StashKey[list[Lifecycle]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Know our lines of the ini-file."""
    parser.addini(OPTIONS, "arguments of the pools of the fixture aiopool: NAME = VALUE", type="linelist")
    parser.addini(CHECK, "whether a test that leaves workers behind fails", type="bool", default=True)


def pytest_configure(config: pytest.Config) -> None:
    """Make the fixtures that the present plugins can run."""
    config.addinivalue_line("markers", "aiopool(*args, **options): the arguments of the pool of the fixture aiopool")
    for plugin in ("asyncio", "anyio"):
        if config.pluginmanager.hasplugin(plugin):
            config.pluginmanager.register(_fixtures_for(plugin), f"aiopool-{plugin}")


@pytest.fixture(name="aiopool")
def started_pool(request: pytest.FixtureRequest) -> AioPool:
    """Be a pool that is started."""
    return _pool(request, "")


@pytest.fixture
def aiopool_inline(request: pytest.FixtureRequest) -> AioPool:
    """Be a pool that is started, and runs calls in this process."""
    return _pool(request, "inline_")


def _pool(request: pytest.FixtureRequest, kind: str) -> AioPool:
    if request.node.get_closest_marker("anyio") is not None:
        scope = "anyio"
    elif not request.config.pluginmanager.hasplugin("aiopool-asyncio"):
        raise pytest.UsageError("the fixture aiopool needs pytest-asyncio, or the marker anyio at the test")
    else:
        scope = _loop_scope(request)
        where = [node for node, _marker in request.node.iter_markers_with_node("aiopool")]
        if scope != "function" and request.node in where:
            raise pytest.UsageError(
                f"{request.node.nodeid} runs in the loop of its {scope}, as its pool does: put the marker aiopool there"
            )
    pool: AioPool = request.getfixturevalue(f"_aiopool_{kind}{scope}")
    return pool


def _loop_scope(request: pytest.FixtureRequest) -> str:
    """Return in whose loop pytest-asyncio runs a test."""
    marker = request.node.get_closest_marker("asyncio")
    asked = None if marker is None else marker.kwargs.get("loop_scope") or marker.kwargs.get("scope")
    return asked or request.config.getini("asyncio_default_test_loop_scope") or "function"


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for line in request.config.getini(OPTIONS):
        name, separator, value = line.partition("=")
        try:
            options[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            separator = ""
        if not separator:
            raise pytest.UsageError(f"{OPTIONS} must have lines NAME = VALUE, with a literal of Python; not {line!r}")
    marker = request.node.get_closest_marker("aiopool")
    if marker is None:
        return options
    from . import AioPool  # noqa: PLC0415 - not imported for tests that use no pool

    return {**options, **inspect.signature(AioPool).bind_partial(*marker.args, **marker.kwargs).arguments}


def _fixtures_for(plugin: str) -> ModuleType:
    """Return a plugin with the fixtures that are another plugin's to run."""
    made = ModuleType(f"{__name__}.{plugin}")
    kinds: dict[str, dict[str, Any]] = {"": {}, "inline_": {"backend": "inline"}}
    for kind, options in kinds.items():
        if plugin == "anyio":
            setattr(made, f"_aiopool_{kind}anyio", pytest.fixture(_fixture(options)))
            continue
        asynchronous: Any = importlib.import_module("pytest_asyncio")  # which is not installed everywhere
        for scope in SCOPES:
            fixture = asynchronous.fixture(_fixture(options), scope=scope, loop_scope=scope)
            setattr(made, f"_aiopool_{kind}{scope}", fixture)
    return made


def _fixture(options: dict[str, Any]) -> Callable[[pytest.FixtureRequest], AsyncGenerator[AioPool, None]]:
    async def pool(request: pytest.FixtureRequest) -> AsyncGenerator[AioPool, None]:
        from . import AioPool  # noqa: PLC0415 - not imported for tests that use no pool

        async with AioPool(**{**_options(request), **options}) as started:
            yield started

    return pool


# Pools that are left behind.


def _living() -> list[Lifecycle]:
    lifecycle = sys.modules.get("aiopool.lifecycle")
    return [] if lifecycle is None else [pool for pool in lifecycle.started if pool.alive]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Note which pools the test itself starts; those of its fixtures are theirs to end."""
    before = _living()
    try:
        return (yield)
    finally:
        item.stash[new_pools] = [pool for pool in _living() if pool not in before]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test whose pools still have workers when all is torn down."""
    try:
        return (yield)
    finally:
        left = [pool for pool in item.stash.get(new_pools, []) if pool.alive]
        if left and item.config.getini(CHECK):
            texts = [repr(pool) for pool in left]
            for pool in left:
                pool.abandon()
            pytest.fail(f"the test has left behind {', '.join(texts)}: use `async with`", pytrace=False)
