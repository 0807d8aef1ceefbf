"""The documents are true of the tests and of the program."""

from __future__ import annotations

import re
from pathlib import Path

import aiopool
from aiopool.caller import Caller
from aiopool.contrib import otel, prometheus
from aiopool.mapper import Mapper

ROOT = Path(__file__).parent.parent


def test_the_readmes_first_program_is_the_example() -> None:
    """Word for word, so what is tested is what is shown."""
    (program,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert program == (ROOT / "examples" / "first.py").read_text()


def test_every_fault_in_the_documents_names_a_test_that_exists() -> None:
    """By file, and by name where one is given."""
    text = (ROOT / "docs" / "what-happens-when.md").read_text()
    named, file = 0, ""
    for found_file, name in re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", text):
        if not (found_file or name):
            continue
        file = found_file or file
        path = ROOT / "tests" / file
        assert path.is_file(), file
        assert not name or f"def {name}(" in path.read_text(), (file, name)
        named += 1
    assert named > 30


def test_the_package_lists_its_names() -> None:
    """All of them, though it has only those so far that somebody has asked for."""
    assert dir(aiopool) == sorted(aiopool.__all__)
    assert all(getattr(aiopool, name) for name in dir(aiopool))


def test_the_reference_has_every_public_name() -> None:
    """Each of the package and of its contrib modules has an entry."""
    text = (ROOT / "docs" / "reference.md").read_text()
    entries = set(re.findall(r"^\.\. [\w:]+:: (?:\w+\.)*(\w+)", text, re.MULTILINE))
    assert {*aiopool.__all__, *otel.__all__, *prometheus.__all__} <= entries


def test_the_reference_lists_what_a_view_of_a_pool_has() -> None:
    """All of its methods, each with a link to the pool's."""
    text = (ROOT / "docs" / "reference.md").read_text()
    entry = text.partition("class:: Caller\n")[2].partition("```")[0]
    of_returned, *listed = re.findall(r"`~?AioPool\.(\w+)`", entry)
    methods = {name for name in (*vars(Mapper), *vars(Caller)) if not name.startswith("_")}
    assert of_returned == "options"
    assert sorted(listed) == sorted(methods)
