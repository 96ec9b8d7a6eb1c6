"""Real programs that read or serve what the library writes: skopeo, podman, docker-registry.

Everything here is plain blocking code with a time limit, so that it always ends. In an async test whose
own loop the program depends on (it serves to it, or reads from it), call it as
``await asyncio.to_thread(skopeo, …)``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TIME_LIMIT = 200.0  # seconds for one run: less than pytest's limit, so that the program's output is shown
START_LIMIT = 60.0  # seconds until a registry listens
STOP_LIMIT = 60.0  # seconds that a program may take to end


class ProgramError(AssertionError):
    """A program failed, or did not end in time; the message has its command and output."""

    def __init__(self, argv: Sequence[str], what: str, output: bytes) -> None:
        super().__init__(f"{' '.join(argv)}: {what}\n{output.decode(errors='replace')[-4000:]}")
        self.argv = list(argv)
        self.output = output


def require_program(name: str) -> None:
    """Skip the test if program `name` is not installed; fail it where interop tests are required."""
    if shutil.which(name) is None:
        if os.environ.get("AIODOCKERSAVE_REQUIRE_INTEROP") == "1":
            pytest.fail(f"{name} is not installed, and AIODOCKERSAVE_REQUIRE_INTEROP=1", pytrace=False)
        pytest.skip(f"{name} is not installed")


def run(
    *argv: str | Path,
    stdin: IO[bytes] | bytes | None = None,
    env: Mapping[str, str] | None = None,
    time_limit: float = TIME_LIMIT,
) -> bytes:
    """Run a program to its end and return its standard output.

    Args:
        argv: The program and its arguments.
        stdin: A file to read from, or the bytes to send; nothing by default.
        env: Variables on top of this process's.
        time_limit: Seconds after which it is ended, with its children.

    Raises:
        ProgramError: It exited with another code than 0, or was ended.
    """
    command = [str(part) for part in argv]
    sent, taken = (stdin, subprocess.PIPE) if isinstance(stdin, bytes) else (None, stdin)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if taken is None else taken,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        start_new_session=True,  # a group of its own, so that its children can be ended with it
    )
    with process:
        try:
            out, err = process.communicate(sent, timeout=time_limit)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            out, err = process.communicate()
            raise ProgramError(command, f"did not end within {time_limit} s", out + err) from None
    if process.returncode:
        raise ProgramError(command, f"exit code {process.returncode}", out + err)
    return out


@contextlib.contextmanager
def ended_at_last(process: subprocess.Popen[Any]) -> Iterator[None]:
    """End a process when the block is left, by force if it takes too long."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()


@dataclass(frozen=True)
class Loaded:
    """The image that a consumer has loaded: its ID and its layers, ``algorithm:encoded`` both."""

    image_id: str
    diff_ids: list[str]


# ── skopeo ──


def skopeo(*args: str | Path, **options: Any) -> bytes:
    """Run skopeo without a signature policy (there may be none on the machine); options as for `run`."""
    return run("skopeo", "--insecure-policy", *args, **options)


def skopeo_inspect(image: str, *, raw: bool = False, config: bool = False) -> dict[str, Any]:
    """Return what skopeo reads from `image` (``docker-archive:…``, ``oci:…``), parsed."""
    flags = [flag for flag, wanted in (("--raw", raw), ("--config", config)) if wanted]
    found: dict[str, Any] = json.loads(skopeo("inspect", *flags, image))
    return found


def skopeo_loaded(image: str) -> Loaded:
    """Copy `image` to nowhere, which reads and checks every blob; return what skopeo takes it for."""
    with tempfile.TemporaryDirectory() as folder:
        skopeo("copy", "--quiet", image, f"dir:{folder}")
        config = json.loads(Path(folder, "manifest.json").read_bytes())["config"]["digest"]
        document = json.loads(Path(folder, config.partition(":")[2]).read_bytes())
    return Loaded(config, document["rootfs"]["diff_ids"])


# ── podman ──


class Podman:
    """podman with a storage of its own in `folder`: nothing of the machine is read or changed.

    The vfs driver needs no mount, so this works in a container and in a sandbox. Containers are not run:
    where the sandbox forbids that, an image's files can be looked at all the same (`files_of`).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy = folder / "policy.json"
        for name in ("storage", "run", "state", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def __call__(self, *args: str | Path, **options: Any) -> bytes:
        """Run podman; options as for `run`."""
        return run(
            "podman",
            *("--root", self.folder / "storage"),
            *("--runroot", self.folder / "run"),
            *("--tmpdir", self.folder / "state"),
            *("--storage-driver", "vfs"),
            *("--cgroup-manager", "cgroupfs"),  # the other one needs systemd
            *("--events-backend", "none"),
            *args,
            env={"TMPDIR": str(self.folder / "tmp"), "STORAGE_DRIVER": "vfs"},
            **options,
        )

    def load(self, archive: Path | IO[bytes] | bytes) -> list[str]:
        """Load an archive (bytes and open files by standard input); return the names that podman says."""
        out = self("load", "--input", archive) if isinstance(archive, Path) else self("load", stdin=archive)
        lines = re.findall(r"^Loaded image(?:\(s\))?: (.+)$", out.decode(), re.MULTILINE)
        return [name for line in lines for name in line.split(",")]

    def inspect(self, image: str) -> dict[str, Any]:
        """Return what podman knows of a loaded image."""
        found: list[dict[str, Any]] = json.loads(self("image", "inspect", image))
        return found[0]

    def loaded(self, name: str) -> Loaded:
        """Return what podman holds under a name."""
        found = self.inspect(name)
        return Loaded(f"sha256:{found['Id']}", found["RootFS"]["Layers"] or [])

    @contextlib.contextmanager
    def files_of(self, image: str) -> Iterator[Path]:
        """Give a folder with the files of a loaded image: all its layers, one over the other."""
        folder = Path(self("image", "mount", image).decode().strip())
        try:
            yield folder
        finally:
            self("image", "unmount", image)

    def remove_all(self) -> None:
        """Remove every image."""
        self("image", "rm", "--all", "--force")


# ── docker-registry ──


@dataclass(frozen=True)
class Registry:
    """A registry that listens on a loopback address.

    Attributes:
        address: ``127.0.0.1:PORT``, as references have it.
        log: What it says of its requests.
        data: Where its images are.
        scheme: ``http`` or ``https``.
    """

    address: str
    log: Path
    data: Path
    scheme: str = "http"

    @property
    def url(self) -> str:
        """The base of its API."""
        return f"{self.scheme}://{self.address}"


def htpasswd_auth(folder: Path, line: str) -> dict[str, object]:
    """Return what makes a registry ask for a password; `line` is one of ``htpasswd -B``, kept in `folder`."""
    path = folder / "htpasswd"
    path.write_text(f"{line}\n")
    return {"htpasswd": {"realm": "the registry", "path": str(path)}}


@contextlib.contextmanager
def running_registry(
    folder: Path,
    *,
    data: Path | None = None,
    auth: Mapping[str, object] | None = None,
    certificate: Path | None = None,
) -> Iterator[Registry]:
    """Run docker-registry; it is ended when the block is left.

    Args:
        folder: What it keeps goes here.
        data: Where its images are, if not in `folder`: several registries may have the same ones.
        auth: The section ``auth`` of its configuration.
        certificate: Its key and chain in one file, to serve https.
    """
    config, log, data = folder / "config.yml", folder / "registry.log", data or folder / "data"
    tls = {"certificate": str(certificate), "key": str(certificate)}
    # JSON is YAML. Port 0: the registry binds a free one and says which, so that nobody can come between.
    config.write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "info", "formatter": "json"},
                "storage": {
                    "filesystem": {"rootdirectory": str(data)},
                    "delete": {"enabled": True},
                },
                "http": {"addr": "127.0.0.1:0", "secret": "not secret"}
                | ({"tls": tls} if certificate else {}),
            }
            | ({"auth": auth} if auth else {})
        )
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("REGISTRY_", "OTEL_"))}
    with (
        log.open("wb") as out,
        subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
        ) as process,
        ended_at_last(process),
    ):
        yield Registry(_wait_for_address(process, log), log, data, "https" if certificate else "http")


def _wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_LIMIT
    while True:
        text = log.read_bytes()
        # "listening on 127.0.0.1:35023", said once the socket accepts connections
        if found := re.search(rb"listening on (127\.0\.0\.1:\d+)", text):
            return found[1].decode()
        if process.poll() is not None:
            raise ProgramError(["docker-registry"], f"exit code {process.returncode}", text)
        if time.monotonic() > deadline:
            raise ProgramError(["docker-registry"], f"does not listen after {START_LIMIT} s", text)
        time.sleep(0.02)


def push_layout(
    layout: Path, name: str, registry: Registry, *, reference: str | None = None, every_platform: bool = False
) -> str:
    """Push an image of an OCI layout to `registry` as it is, digests unchanged.

    Args:
        layout: The layout's folder.
        name: Repository and tag, such as ``team/app:1.0``.
        registry: Where to.
        reference: The image's ``org.opencontainers.image.ref.name``, where the layout has several.
        every_platform: Push an index with all that it names, not only this machine's image.

    Returns:
        The reference of what was pushed, such as ``127.0.0.1:35023/team/app:1.0``.
    """
    pushed = f"{registry.address}/{name}"
    skopeo(
        "copy",
        "--quiet",
        "--preserve-digests",
        "--dest-tls-verify=false",
        *(["--all"] if every_platform else []),
        f"oci:{layout}:{reference}" if reference else f"oci:{layout}",
        f"docker://{pushed}",
    )
    return pushed
