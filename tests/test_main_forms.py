"""The main module in all its forms: which of them workers can import, and what the others are told to do."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import types
import zipapp
from collections.abc import Callable
from pathlib import Path

import pytest

from aiopool import AioPool, InitializerError, NotPicklable
from aiopool.exceptions import what_to_do
from conftest import START_METHODS

HERE = Path(__file__).parent
IMPORTING = ["forkserver", "spawn"]
"""The start methods whose workers import the main module again."""

WHAT_TO_DO = "Put it into a module of its own, and import it."

DEFINE = """\
import asyncio, sys
import work
from aiopool import AioPool, NotPicklable

def cube(x): return x**3

async def main(workers=1):
    async with AioPool(workers, context=sys.argv[-1]) as pool:
        print(await pool.map(work.square, range(4)), flush=True)
        try: print(await pool.apply(cube, (3,)), await pool.map(cube, range(4)))
        except NotPicklable as error: print(error)

"""
RUN = "asyncio.run(main())\n"
GUARDED = 'if __name__ == "__main__": asyncio.run(main())\n'

CONSOLE_SCRIPT = """\
#!{python}
import re
import sys
from {module} import main
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""
"""What pip writes into ``bin`` for a console script."""

Form = Callable[[Path], tuple[list[str], str]]
"""Writes a program into a directory; returns Python's arguments and what is typed into it."""


def script(home: Path, end: str = GUARDED) -> tuple[list[str], str]:
    """Python is given a file."""
    (home / "program.py").write_text(DEFINE + end)
    return [str(home / "program.py")], ""


def module(home: Path, end: str = GUARDED) -> tuple[list[str], str]:
    """As ``python -m package.program``."""
    (home / "package").mkdir()
    (home / "package/program.py").write_text(DEFINE + end)
    return ["-m", "package.program"], ""


def file_in_bin(home: Path, end: str = GUARDED) -> tuple[list[str], str]:
    """A file that does not end in ``.py``."""
    (home / "bin").mkdir()
    (home / "bin/program").write_text(DEFINE + end)
    return [str(home / "bin/program")], ""


def console_script(home: Path) -> tuple[list[str], str]:
    """What pip makes for an entry point."""
    (home / "installed.py").write_text(DEFINE.replace("main(", "amain(") + "def main(): asyncio.run(amain())\n")
    (home / "program").write_text(CONSOLE_SCRIPT.format(python=sys.executable, module="installed"))
    return [str(home / "program")], ""


def package(home: Path) -> tuple[list[str], str]:
    """As ``python -m package``."""
    (home / "package").mkdir()
    (home / "package/__main__.py").write_text(DEFINE + RUN)
    return ["-m", "package"], ""


def directory(home: Path) -> tuple[list[str], str]:
    """Python is given a directory with a ``__main__.py``."""
    (home / "package").mkdir()
    (home / "package/__main__.py").write_text(DEFINE + RUN)
    return [str(home / "package")], ""


def zip_application(home: Path) -> tuple[list[str], str]:
    """With a module of its own beside its ``__main__.py``."""
    (home / "app").mkdir()
    (home / "work.py").rename(home / "app/work.py")
    (home / "app/__main__.py").write_text(DEFINE + RUN)
    zipapp.create_archive(home / "app", home / "app.pyz")
    return [str(home / "app.pyz")], ""


def command(home: Path) -> tuple[list[str], str]:
    """As ``python -c``."""
    del home
    return ["-c", DEFINE + RUN], ""


def interpreter(home: Path) -> tuple[list[str], str]:
    """Typed into an interactive interpreter, line by line."""
    del home
    return ["-i", "-"], DEFINE.replace("cube(x): return x**3", "cube(x): return x**3\n") + RUN


NOTEBOOK = """\
import ast, asyncio, inspect, sys, types
user = sys.modules["__main__"] = types.ModuleType("__main__")
async def run(cells):
    for cell in cells:
        code = compile(cell, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if inspect.iscoroutine(coroutine := eval(code, user.__dict__)): await coroutine
asyncio.run(run({cells!r}))
"""


def notebook(home: Path) -> tuple[list[str], str]:
    """A kernel that runs cells in a main module that it has made, in a loop of its own."""
    (home / "kernel.py").write_text(NOTEBOOK.format(cells=[DEFINE, "await main()\n"]))
    return ["-m", "kernel"], ""


IMPORTED_AGAIN: list[Form] = [script, module, file_in_bin, console_script]
NOT_IMPORTED: list[Form] = [package, directory, zip_application, command, interpreter, notebook]


def python(home: Path, form: Form, method: str) -> subprocess.CompletedProcess[str]:
    """Run a program of that form."""
    (home / "work.py").write_text("def square(x): return x * x\n")
    options, typed = form(home)
    return subprocess.run(
        [sys.executable, "-W", "error", *options, method], input=typed, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{HERE.parent / 'src'}:{home}"}, timeout=50, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("method", IMPORTING)
@pytest.mark.parametrize("form", IMPORTED_AGAIN)
def test_functions_of_a_main_module_that_workers_import_run_there(form: Form, method: str, tmp_path: Path) -> None:
    """In a script, a module that is run by its name, a console script."""
    done = python(tmp_path, form, method)
    assert (done.stdout, done.stderr, done.returncode) == ("[0, 1, 4, 9]\n27 [0, 1, 8, 27]\n", "", 0)


@pytest.mark.parametrize("method", IMPORTING)
@pytest.mark.parametrize("form", NOT_IMPORTED)
def test_functions_of_a_main_module_that_workers_cannot_import_say_so(form: Form, method: str, tmp_path: Path) -> None:
    """No guard is needed then, what is imported from modules works, and of the main module's it is said what to do."""
    done = python(tmp_path, form, method)
    assert done.returncode == 0, done.stderr
    numbers, error = done.stdout.splitlines()
    assert numbers == "[0, 1, 4, 9]"
    assert error.startswith("the function of cube could not be pickled or unpickled: ")
    assert "attribute 'cube'" in error
    assert WHAT_TO_DO in error


@pytest.mark.parametrize("form", [package, interpreter, notebook])
def test_with_fork_functions_of_every_main_module_run_in_workers(form: Form, tmp_path: Path) -> None:
    """A worker is then a copy of the program."""
    done = python(tmp_path, form, "fork")
    assert done.stdout == "[0, 1, 4, 9]\n27 [0, 1, 8, 27]\n", done.stderr


def type_into(home: Path, *options: str, text: str) -> tuple[str, str]:
    """Type into an interpreter; return what it wrote to its output and to its errors."""
    (home / "work.py").write_text("def square(x): return x * x\n")
    done = subprocess.run(
        [sys.executable, "-q", *options], input=text, capture_output=True, text=True, cwd=home, timeout=50, check=False,
        env={**os.environ, "PYTHONPATH": f"{HERE.parent / 'src'}:{home}"},
    )  # fmt: skip
    return done.stdout, done.stderr


@pytest.mark.parametrize("method", START_METHODS)
def test_the_asyncio_interpreter_awaits_calls(method: str, tmp_path: Path) -> None:
    """Of functions from modules; one that was typed is not even in its main module, and it is said what to do."""
    out, err = type_into(tmp_path, "-m", "asyncio", text=(
        "import work, aiopool\n"
        "def cube(x): return x**3\n\n"
        f"pool = await aiopool.AioPool(1, context={method!r}).__aenter__()\n"
        "print('squared:', await pool.map(work.square, range(4)))\n"
        "await pool.apply(cube, (3,))\n"
        "pool.close(); await pool.join()\n"
        "print('closed:', pool)\n"
    ))  # fmt: skip
    assert "squared: [0, 1, 4, 9]" in out
    assert "closed: <AioPool closed" in out
    assert "NotPicklable: the function of cube" in err
    assert WHAT_TO_DO in err


def test_with_fork_a_function_that_was_typed_after_the_start_says_what_to_do(tmp_path: Path) -> None:
    """The workers are copies of the program as it was."""
    out, err = type_into(tmp_path, "-i", text=(
        "import asyncio, work, aiopool\n"
        "loop = asyncio.new_event_loop()\n"
        "pool = aiopool.AioPool(1, context='fork')\n"
        "loop.run_until_complete(pool.start())\n"
        "def cube(x): return x**3\n\n"
        "loop.run_until_complete(pool.apply(cube, (3,)))\n"
        "print(loop.run_until_complete(pool.apply(work.square, (3,))))\n"
        "pool.close()\n"
        "loop.run_until_complete(pool.join())\n"
    ))  # fmt: skip
    assert out == "9\n"
    assert "NotPicklable: the function of cube" in err
    assert WHAT_TO_DO in err


@pytest.mark.parametrize("method", IMPORTING)
def test_an_initializer_that_was_typed_says_what_to_do(method: str, tmp_path: Path) -> None:
    """In the error's own text, before any call."""
    _, err = type_into(tmp_path, "-i", text=(
        "import asyncio, aiopool\n"
        "def prepare(): pass\n\n"
        f"asyncio.run(aiopool.AioPool(2, prepare, context={method!r}).start())\n"
    ))  # fmt: skip
    assert "AttributeError: Can't get attribute 'prepare'" in err
    assert "InitializerError: the initializer failed in a worker" in err
    assert WHAT_TO_DO in err


@pytest.mark.parametrize("method", IMPORTING)
def test_a_program_from_standard_input_is_one_clear_error(method: str, tmp_path: Path) -> None:
    """It has no file that workers could import; they do not even begin to try."""
    out, err = type_into(tmp_path, "-", method, text=DEFINE + RUN)
    assert out == ""
    assert err.count("Traceback") == 1
    assert "InitializerError: the program was read from its standard input" in err
    assert "Put it into a file" in err


@pytest.mark.parametrize("method", IMPORTING)
async def test_a_start_in_a_folder_that_is_gone_is_one_clear_error(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker could not go there."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(InitializerError, match="the parent's working directory, which is gone"):
        await AioPool(1, context=method).start()


def test_with_fork_a_program_from_standard_input_runs(tmp_path: Path) -> None:
    """It need not be imported then."""
    assert type_into(tmp_path, "-", "fork", text=DEFINE + RUN) == ("[0, 1, 4, 9]\n27 [0, 1, 8, 27]\n", "")


TESTS = """\
import asyncio, pytest
from aiopool import AioPool

def cube(x): return x**3

@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_it(method):
    async def main():
        async with AioPool(1, context=method) as pool:
            return await pool.map(cube, range(4))
    assert asyncio.run(main()) == [0, 1, 8, 27]
"""


@pytest.mark.parametrize("form", ["python -m pytest", "pytest"])
def test_functions_of_a_test_module_run_in_workers(form: str, tmp_path: Path) -> None:
    """Under pytest, whichever way it is started."""
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest").write_text(CONSOLE_SCRIPT.format(python=sys.executable, module="pytest"))
    options = ["-m", "pytest"] if form.startswith("python") else [str(tmp_path / "pytest")]
    done = subprocess.run(
        [sys.executable, *options, "-q", "-p", "no:cacheprovider", str(tmp_path / "test_it.py")], cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(HERE.parent / "src")},
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("method", IMPORTING)
@pytest.mark.parametrize("form", [module, file_in_bin])
def test_a_missing_guard_is_one_clear_error(form: Callable[[Path, str], tuple[list[str], str]], method: str,
                                            tmp_path: Path) -> None:  # fmt: skip
    """Wherever workers import the main module: no storm of processes or of tracebacks."""
    done = python(tmp_path, lambda home: form(home, RUN.replace("main()", "main(3)")), method)
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.count("Traceback") == 1
    assert "InitializerError: the main module starts the pool while it is being imported" in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr


PRELOADS_MAIN = """\
from multiprocessing import spawn
prepare = spawn.get_preparation_data
def prepare_as_newer_pythons_do(name):
    data = prepare(name)
    return {**data, "main_path": data["init_main_from_path"]} if "init_main_from_path" in data else data
spawn.get_preparation_data = prepare_as_newer_pythons_do
"""


def test_a_missing_guard_is_one_clear_error_where_the_fork_server_would_import_the_main_module(tmp_path: Path) -> None:
    """From Python 3.13.8 on it does, if it is let; older ones are made to do it here."""
    (tmp_path / "sitecustomize.py").write_text(PRELOADS_MAIN)
    done = python(tmp_path, lambda home: script(home, RUN), "forkserver")
    assert done.stderr.count("Traceback") == 1
    assert "InitializerError: the main module starts the pool while it is being imported" in done.stderr


def f() -> None:
    """Stand for a function of the main module."""


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("Can't get attribute 'f' on <module '__main__' (built-in)>", 1),
        ("Can't get attribute 'C.f' on <module '__mp_main__' from '/home/x.py'>", 1),
        ("Can't pickle <function f at 0x1>: attribute lookup f on __main__ failed", 1),
        ("Can't pickle <function f at 0x1>: it's not found as __main__.f", 1),
        ("Can't pickle <function <lambda> at 0x1>: attribute lookup <lambda> on __main__ failed", 0),
        ("Can't get attribute 'f' on <module 'work' from '/home/work.py'>", 0),
        ("Can't pickle <function f at 0x1>: it's not the same object as __main__.f", 0),
    ],
)
def test_what_to_do_is_said_where_it_helps(text: str, times: int) -> None:
    """Of a name that the main module lacks, in the words of all Pythons; not of what no module could mend."""
    assert str(NotPicklable("function", "f", "AttributeError", text)).count(WHAT_TO_DO) == times
    assert WHAT_TO_DO not in str(NotPicklable("exception", "f", "AttributeError", text))


def test_pickle_says_what_is_expected_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this Python, too."""
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    monkeypatch.setattr(f, "__module__", "__main__")
    with pytest.raises(pickle.PicklingError) as pickling:
        pickle.dumps(f)
    with pytest.raises(AttributeError) as unpickling:
        pickle.loads(b"c__main__\nf\n.")
    assert what_to_do(str(pickling.value))
    assert what_to_do(str(unpickling.value))
