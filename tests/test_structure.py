"""The house rules that imports and names can show: who may know whom, and what loads when."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import TypeGuard

import pytest

import aiodockersave
from aiodockersave.core import errors

PACKAGE = Path(aiodockersave.__file__).parent

# The rooms, lowest first: each imports from those below it only. Rooms of one floor do not know each other.
FLOORS = "core ← _aio ← blobs ← sinks sources ← archive ← pipeline web ← cli"
FLOOR = {room: number for number, floor in enumerate(FLOORS.split(" ← ")) for room in floor.split()}
# Modules at the top that only give public names of `core` under the paths that callers know.
PUBLIC_PATHS = {"errors", "model", "documents"}
# What decides inside a room that acts.
DECIDES_TOO = {"web.fields", "web.ranges"}

# The standard library's parts that wait, touch files or read a clock.
ACTING_LIBRARIES = {
    "asyncio", "concurrent", "contextvars", "datetime", "fcntl", "multiprocessing", "os", "pathlib", "queue",
    "random", "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time",
}  # fmt: skip
CORE_DEPENDENCIES = {"aiofiles", "anyio"}
# Where an optional dependency may be imported.
OPTIONAL_DEPENDENCIES = {
    "aiohttp": {"sources", "web"},
    "backports": {"core"},
    "click": {"cli"},
    "isal": {"core"},
    "rich": {"cli"},
    "starlette": {"web"},  # used where it is there: FastAPI takes no other responses
    "yarl": {"sources"},
}


def module_name(path: Path) -> str:
    """`sources.oci_layout` for a file of the package, "" for its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [name for name in FILES if name not in {"", "__main__"}]


def room_of(module: str) -> str:
    return module.partition(".")[0]


def is_type_checking(node: ast.AST) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(module: str) -> list[tuple[str, bool]]:
    """Return the imports of a module, wherever in it: full dotted names, and whether for type checking only."""
    path = FILES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if is_type_checking(node)]
    for_types = {inner for block in blocks for part in block.body for inner in ast.walk(part)}
    package = ".".join(["aiodockersave", *path.relative_to(PACKAGE).parts[:-1]])
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in for_types) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix("aiodockersave.")
                found.append((f"aiodockersave.{inner}" if inner in FILES else base, node in for_types))
    return found


def own_imports(module: str) -> list[tuple[str, bool]]:
    """Those of `imports_of` that are in this package, as `FILES` names them."""
    return [
        (name.removeprefix("aiodockersave").removeprefix("."), for_types)
        for name, for_types in imports_of(module)
        if room_of(name) == "aiodockersave"
    ]


def test_rooms_import_only_from_rooms_below() -> None:
    assert {room_of(module) for module in MODULES} == {*FLOOR, *PUBLIC_PATHS}
    for module in MODULES:
        room = room_of(module)
        known = {room_of(imported) for imported, _ in own_imports(module)} - {"", room}
        if room in PUBLIC_PATHS:
            assert known == {"core"}, module
        else:
            assert not {other for other in known if FLOOR.get(other, 99) >= FLOOR[room]}, module


def test_archives_know_no_source() -> None:
    assert not {room_of(name) for m in MODULES if room_of(m) == "archive" for name, _ in own_imports(m)} & {
        "sources"
    }


def test_the_entry_imports_only_the_command_line_and_errors() -> None:
    assert {imported for imported, _ in own_imports("__main__")} == {"cli", "core.errors"}


def test_the_package_itself_imports_nothing_of_its_own_at_run_time() -> None:
    assert all(for_types for _, for_types in own_imports(""))


def test_deciding_rooms_do_not_act() -> None:
    waiting = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    for module in (module for module in MODULES if room_of(module) == "core" or module in DECIDES_TOO):
        foreign = {room_of(name) for name, for_types in imports_of(module) if not for_types}
        assert not foreign & (ACTING_LIBRARIES | CORE_DEPENDENCIES), module
        tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
        assert not [node.lineno for node in ast.walk(tree) if isinstance(node, waiting)], module


def test_what_decides_inside_a_room_knows_nothing_that_acts() -> None:
    imported = {name for module in DECIDES_TOO for name, _ in own_imports(module)}
    assert {name for name in imported if room_of(name) != "core"} <= DECIDES_TOO


def test_dependencies_are_imported_where_they_belong() -> None:
    always = {"aiodockersave", *sys.stdlib_module_names, *CORE_DEPENDENCIES}
    found = {(room_of(name), room_of(module)) for module in MODULES for name, _ in imports_of(module)}
    strangers = {(library, room) for library, room in found if library not in always}
    assert not {
        (library, room)
        for library, room in strangers
        if room not in OPTIONAL_DEPENDENCIES.get(library, set())
    }


def test_cancellation_is_held_off_in_one_place() -> None:
    texts = {module: path.read_text(encoding="utf-8") for module, path in FILES.items() if module != "_aio"}
    assert not {
        m for m, text in texts.items() if re.search(r"\b\w*(?:shield|run_in_executor|to_thread)\w*\b", text)
    }


def test_nothing_is_unpacked() -> None:
    """Members of a foreign archive never become files: their names are not to be trusted."""
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}
    names = {
        (node.attr, m)
        for m, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
    }
    assert not {(name, m) for name, m in names if name.startswith(("extract", "unpack_archive"))}


# ── what loads when ──


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that knows the package from the same place."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def modules_after(code: str) -> set[str]:
    result = run_python(f"{code}\nimport sys\nprint(*sys.modules)")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_else() -> None:
    loaded = modules_after("import aiodockersave")
    assert {name for name in loaded if room_of(name) == "aiodockersave"} == {"aiodockersave"}
    assert not {room_of(name) for name in loaded} & {"asyncio", *CORE_DEPENDENCIES, *OPTIONAL_DEPENDENCIES}


def test_the_writer_loads_only_what_it_needs() -> None:
    loaded = modules_after("from aiodockersave import ArchiveWriter")
    assert "aiodockersave.archive.writer" in loaded
    assert not {room_of(name) for name in loaded} & set(OPTIONAL_DEPENDENCIES)
    rooms = {name.split(".")[1] for name in loaded if name.startswith("aiodockersave.")}
    assert rooms <= {"core", "_aio", "blobs", "sinks", "archive"}


SAVES = """
import asyncio, sys, tempfile
from pathlib import Path
from aiodockersave import ImageRequest, OciLayoutSource, save

async def main():
    with tempfile.TemporaryDirectory() as folder:
        request = ImageRequest(OciLayoutSource("examples/hello"), "", ["a:1"])
        target = Path(folder, "a.tar")
        if {kind!r} == "stream":
            with target.open("wb") as file:
                await save([request], file)
        else:
            await save([request], target, layers={kind!r})
        assert target.stat().st_size

asyncio.run(main())
"""
"""Saves the small image that ships with the project: layers kept, or decompressed, into a file; or into a stream."""


WRITING = ("archive.writer", "sinks.adapters", "pipeline.to_sink", "pipeline.through_writer")


@pytest.mark.parametrize(
    ("kind", "unused"),
    [
        ("keep", {"anyio", *WRITING, "core.decompression"}),
        ("decompress", {"anyio", "pipeline.to_file", "pipeline.to_sink", "blobs.file_region"}),
        ("stream", {"anyio", "pipeline.to_file", "pipeline.through_writer", "blobs.file_region"}),
    ],
)
def test_a_save_loads_only_what_it_needs(kind: str, unused: set[str]) -> None:
    loaded = {name.removeprefix("aiodockersave.") for name in modules_after(SAVES.format(kind=kind))}
    assert "pipeline.saving" in loaded
    assert not loaded & unused


@pytest.mark.parametrize("options", ["layers='keep'", "layers='decompress'", "verify_diff_ids=True"])
def test_what_is_loaded_late_is_not_loaded_by_the_loop(options: str) -> None:
    """A save has its modules in memory before the loop would import them."""
    code = SAVES.format(kind="keep").replace("layers='keep'", options)
    code = code.replace(
        "asyncio.run(main())",
        "import threading, importlib._bootstrap as own\n"
        "load, late = own._load_unlocked, []\n"
        "def note(spec):\n"
        "    if threading.current_thread() is threading.main_thread(): late.append(spec.name)\n"
        "    return load(spec)\n"
        "own._load_unlocked = note\n"
        "asyncio.run(main())\n"
        "assert not [name for name in late if name.startswith('aiodockersave')], late",
    )
    assert run_python(code).returncode == 0, run_python(code).stderr


@pytest.mark.parametrize(
    ("module", "needed"), [("web.asgi", set()), ("web.aiohttp", {"aiohttp"}), ("web.ranges", set())]
)
def test_responses_load_only_their_own_framework(module: str, needed: set[str]) -> None:
    loaded = {room_of(name) for name in modules_after(f"import aiodockersave.{module}")}
    assert loaded & {"aiohttp", "fastapi", "uvicorn", "click", "rich"} == needed


def test_without_starlette_the_asgi_responses_stand_alone() -> None:
    result = run_python(
        "import sys; sys.modules['starlette'] = None\n"
        "from aiodockersave.web.asgi import PlanResponse; print(PlanResponse.__mro__[-2].__name__)"
    )
    assert (result.returncode, result.stdout) == (0, "_BodyResponse\n"), result.stderr


def test_without_aiohttp_its_responses_say_what_to_install() -> None:
    result = run_python("import sys; sys.modules['aiohttp'] = None; import aiodockersave.web.aiohttp")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("pip install 'aiodockersave[registry]'")


def test_the_entry_loads_no_command_line() -> None:
    assert not {room_of(name) for name in modules_after("import aiodockersave.__main__")} & {"click", "rich"}


def test_every_module_is_importable_alone() -> None:
    for module in MODULES:
        result = run_python(f"import aiodockersave.{module}")
        assert result.returncode == 0, result.stderr


def test_without_the_extra_the_entry_says_what_to_install() -> None:
    result = run_python(
        "import sys; sys.modules['click'] = None; from aiodockersave.__main__ import main; sys.exit(main())"
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"aiodockersave: {errors.MissingDependencyError('the command line', 'cli')}\n"
    assert "pip install 'aiodockersave[cli]'" in result.stderr


def test_another_missing_module_is_not_taken_for_the_extra() -> None:
    result = run_python(
        "import sys; sys.modules['aiodockersave.cli'] = None; from aiodockersave.__main__ import main; main()"
    )
    assert result.returncode == 1
    assert "ModuleNotFoundError" in result.stderr


# ── the public names ──


def names_for_type_checkers() -> dict[str, str]:
    """The public names as type checkers see them, each with its room."""
    tree = ast.parse(FILES[""].read_text(encoding="utf-8"))
    return {
        alias.name: node.module or ""
        for block in tree.body
        if is_type_checking(block)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def public_errors() -> set[str]:
    own = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, Exception)]
    return {cls.__name__ for cls in own if not cls.__name__.startswith("_")}


def test_public_names_are_sorted_and_whole() -> None:
    assert aiodockersave.__all__ == sorted({*names_for_type_checkers(), "__version__"})
    assert public_errors() <= set(aiodockersave.__all__)
    assert set(aiodockersave.__all__) <= set(dir(aiodockersave))


def test_public_names_resolve_to_what_type_checkers_see() -> None:
    for name, room in names_for_type_checkers().items():
        defined = getattr(importlib.import_module(f"aiodockersave.{room}"), name)
        assert getattr(aiodockersave, name) is defined, name


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'NoSuchError'"):
        getattr(aiodockersave, "NoSuchError")  # noqa: B009 - as a type checker refuses it otherwise


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


# ── the tests themselves: no wait that a busy machine makes too short decides one ──

TESTS = Path(__file__).parent
WAITS = {"timeout", "wait_for", "wait", "join", "fail_after", "move_on_after", "Timeouts", "ClientTimeout"}
NAMED = re.compile(r"LIMIT|PATIENCE|GRACE|SILENCE|TIMEOUT")
SHORTEST = 10  # seconds
EXCUSE = "# not a verdict"


def short_waits(source: str) -> list[str]:
    """Name the lines where something is waited for that has little time, and none says why that decides nothing."""
    lines = source.splitlines()
    found = set()
    for node in ast.walk(ast.parse(source)):
        limits: list[ast.expr] = []
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in WAITS:
                limits += node.args[-1:] + [each.value for each in node.keywords]
            limits += [
                each.value
                for each in node.keywords
                if re.fullmatch(r"(?!.*shutdown).*timeout", each.arg or "")
            ]
        elif isinstance(node, ast.Assign) and any(
            isinstance(name, ast.Name) and NAMED.search(name.id) for name in node.targets
        ):
            limits.append(node.value)
        for limit in limits:
            value = limit.value if isinstance(limit, ast.Constant) else None
            is_short = isinstance(value, int | float) and 0 < value < SHORTEST and value is not True
            if is_short and EXCUSE not in lines[limit.lineno - 1]:
                found.add(f"{limit.lineno}: {lines[limit.lineno - 1].strip()}")
    return sorted(found)


def test_no_short_wait_decides_a_test() -> None:
    paths = [path for path in sorted(TESTS.rglob("*.py")) if "benchmarks" not in path.parts]
    found = {str(path.relative_to(TESTS)): short_waits(path.read_text(encoding="utf-8")) for path in paths}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_short_waits_are_found() -> None:
    source = """
LIMIT = 5.0
with asyncio.timeout(9): pass
wait_for(task, 1)
thread.join(0.5)
save(send_timeout=0.3)
thread.join(); event.wait(); asyncio.timeout(0); asyncio.timeout(10); asyncio.timeout(LIMIT)
asyncio.timeout(0.1)  # not a verdict: nothing comes
"""
    assert [int(found.partition(":")[0]) for found in short_waits(source)] == [2, 3, 4, 5, 6]
