"""How the site is built: ``sphinx-build -W --keep-going -b html docs docs/_build/html``."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "aiopool"
author = "The developers of aiopool"
project_copyright = author
version = release = version_of("aiopool")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "phase_tables"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "aiopool"
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

default_role = "py:obj"  # what docstrings name in `single backquotes`
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

ITERABLES = "Iterable[T] | AsyncIterable[T]"

SIGNATURES = {
    "aiopool.AioPool.submit": ("(func: Callable[P, T], /, *args: P.args, **kwds: P.kwargs)", "AsyncResult[T]"),
    "aiopool.AioPool.stream": (
        f"(func: Callable[P, {ITERABLES}], /, *args: P.args, **kwds: P.kwargs)",
        "StreamIterator[T]",
    ),
    "aiopool.PoolExecutor.submit": ("(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs)", "Future[T]"),
}
"""As they stand in the code; autodoc has its own way to write a ParamSpec, which nobody understands."""


def _signature_of(_app: Sphinx, _what: str, name: str, *_rest: object) -> tuple[str, str] | None:
    return SIGNATURES.get(name)


def setup(app: Sphinx) -> None:
    """Have autodoc show signatures as people write them."""
    app.connect("autodoc-process-signature", _signature_of)
