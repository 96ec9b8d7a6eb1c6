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
from aiodockersave import errors

PACKAGE = Path(aiodockersave.__file__).parent

# The rooms in order: each imports only from those before it. A package is one room. A new room is
# given its place here, and there is no other list to keep.
DECIDES = (
    "_text",
    "errors",
    "gojson",
    "model",
    "documents",
    "reference",
    "tar",
    "formats",
    "plan",
    "plain_layout",
    "first_bytes",
    "decompression",
)
ACTS = (
    *("_aio", "_open_file", "content", "expansion", "space", "staging", "intake"),
    *(
        "_adapter",
        "_pipes",
        "sinks",
        "output",
        "ledger",
        "layers",
        "_calls",
        "_path",
        "_beside",
        "_part_file",
        "_target",
        "writer",
        "archive_file",
        "blob_content",
        "read_ahead",
        "outgoing",
        "stream",
    ),
    *(
        "sources",
        "ahead",
        "preparing",
        "progress",
        "books",
        "in_place",
        "placing",
        "following",
        "filling",
        "kept_file",
        "plain_file",
    ),
    *("syncing", "streaming", "saving", "pipeline", "web", "cli"),
)
ROOMS = (*DECIDES, *ACTS)
# What decides inside a room that acts.
DECIDES_TOO = {"web.fields", "web.ranges"}

# Known only for types, against the direction: errors carry digests and descriptors.
FOR_TYPES_ONLY = {("errors", "model")}
# The two ends of the way: what joins them is the pipeline.
STRANGERS = {("sources", "sinks"), ("sinks", "sources"), ("sources", "writer")}

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
    "backports": {"decompression"},
    "click": {"cli"},
    "isal": {"decompression"},
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
    """What a module imports, wherever in it: full dotted names, and whether for type checking only."""
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


def test_every_module_has_its_room() -> None:
    assert {room_of(module) for module in MODULES} <= set(ROOMS), "give the new room its place in ROOMS"


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_only_from_rooms_above(module: str) -> None:
    room = room_of(module)
    for imported, for_types in own_imports(module):
        other = room_of(imported)
        if other in {"", room} or (for_types and (room, other) in FOR_TYPES_ONLY):
            continue  # the version, the own room
        assert other != "__main__", f"{module} imports __main__"
        assert ROOMS.index(other) < ROOMS.index(room), f"{module} imports {imported}, which is below it"
        assert (room, other) not in STRANGERS, f"{module} imports {imported}: they do not know each other"


def test_the_entry_imports_only_the_command_line_and_errors() -> None:
    assert {imported for imported, _ in own_imports("__main__")} == {"cli", "errors"}


def test_the_package_itself_imports_nothing_of_its_own_at_run_time() -> None:
    assert all(for_types for _, for_types in own_imports(""))


@pytest.mark.parametrize(
    "module", [module for module in MODULES if room_of(module) in DECIDES or module in DECIDES_TOO]
)
def test_deciding_rooms_do_not_act(module: str) -> None:
    foreign = {room_of(name) for name, for_types in imports_of(module) if not for_types} - {"aiodockersave"}
    assert not foreign & ACTING_LIBRARIES
    assert not foreign & CORE_DEPENDENCIES
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    waiting = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, waiting)]


@pytest.mark.parametrize("module", sorted(DECIDES_TOO))
def test_what_decides_inside_a_room_knows_nothing_that_acts(module: str) -> None:
    imported = {name for name, _ in own_imports(module)}
    assert {name for name in imported if room_of(name) not in DECIDES} <= DECIDES_TOO


@pytest.mark.parametrize("module", MODULES)
def test_dependencies_are_imported_where_they_belong(module: str) -> None:
    for name, _ in imports_of(module):
        library = room_of(name)
        if library in {"aiodockersave", *sys.stdlib_module_names, *CORE_DEPENDENCIES}:
            continue
        assert room_of(module) in OPTIONAL_DEPENDENCIES.get(library, set()), f"{module} imports {library}"


@pytest.mark.parametrize("module", FILES)
def test_cancellation_is_held_off_in_one_place(module: str) -> None:
    if module != "_aio":
        text = FILES[module].read_text(encoding="utf-8")
        assert not re.findall(r"\b\w*(?:shield|run_in_executor|to_thread)\w*\b", text)


@pytest.mark.parametrize("module", FILES)
def test_nothing_is_unpacked(module: str) -> None:
    """Members of a foreign archive never become files: their names are not to be trusted."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not {name for name in names if name.startswith(("extract", "unpack_archive"))}


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
    assert "aiodockersave.writer" in loaded
    assert not {room_of(name) for name in loaded} & set(OPTIONAL_DEPENDENCIES)
    rooms = {name.split(".")[1] for name in loaded if name.startswith("aiodockersave.")}
    assert rooms <= set(ROOMS[: ROOMS.index("writer") + 1])


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


@pytest.mark.parametrize(
    ("kind", "unused"),
    [
        ("keep", {"anyio", "writer", "sinks", "streaming", "plain_file", "decompression"}),
        ("decompress", {"anyio", "writer", "sinks", "streaming", "kept_file"}),
        ("stream", {"anyio", "kept_file", "plain_file", "filling"}),
    ],
)
def test_a_save_loads_only_what_it_needs(kind: str, unused: set[str]) -> None:
    loaded = {name.removeprefix("aiodockersave.") for name in modules_after(SAVES.format(kind=kind))}
    assert "saving" in loaded
    assert not loaded & unused


@pytest.mark.parametrize("options", ["layers='keep'", "layers='decompress'", "verify_diff_ids=True"])
def test_what_is_loaded_late_is_not_loaded_by_the_loop(options: str) -> None:
    """What a save needs is there before it is imported on the loop."""
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


def test_loading_aiohttp_for_us_alone_leaves_tls_as_it_was() -> None:
    result = run_python(
        "import ssl; own = dict(vars(ssl.SSLContext)); certs = len(ssl.create_default_context().get_ca_certs())\n"
        "from aiodockersave.sources._importing import load_aiohttp_for_us_alone as load; load()\n"
        "import aiohttp.connector\n"
        "print(dict(vars(ssl.SSLContext)) == own, len(ssl.create_default_context().get_ca_certs()) == certs,\n"
        "      len(aiohttp.connector._SSL_CONTEXT_VERIFIED.get_ca_certs()))"
    )
    assert (result.returncode, result.stdout) == (0, "True True 0\n"), result.stderr


def test_the_entry_loads_no_command_line() -> None:
    assert not {room_of(name) for name in modules_after("import aiodockersave.__main__")} & {"click", "rich"}


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_importable_alone(module: str) -> None:
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


@pytest.mark.parametrize(("name", "room"), names_for_type_checkers().items())
def test_public_names_resolve_to_what_type_checkers_see(name: str, room: str) -> None:
    assert getattr(aiodockersave, name) is getattr(importlib.import_module(f"aiodockersave.{room}"), name)


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


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(TESTS.rglob("*.py")) if "benchmarks" not in path.parts],
    ids=lambda path: str(path.relative_to(TESTS)),
)
def test_no_short_wait_decides_a_test(path: Path) -> None:
    assert short_waits(path.read_text(encoding="utf-8")) == []


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
