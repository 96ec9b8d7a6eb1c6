"""Real daemons that archives are loaded into: containerd, and a dockerd that uses it.

Each keeps all it has in one folder and listens on a socket in there; nothing of the machine's own daemons is read
or changed. No network is set up, no container is run. They mount layers, so they need root.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import pytest

from .programs import TIME_LIMIT, Loaded, ProgramError, ended_at_last, require_program, run

START_LIMIT = 120.0  # seconds until a daemon answers


def require_daemons() -> None:
    """Skip the test where the daemons cannot be run; fail it where interop tests are required."""
    for program in ("containerd", "ctr", "runc", "dockerd"):
        require_program(program)
    if os.geteuid() != 0:
        if os.environ.get("AIODOCKERSAVE_REQUIRE_INTEROP") == "1":
            pytest.fail(
                "dockerd and containerd need root, and AIODOCKERSAVE_REQUIRE_INTEROP=1", pytrace=False
            )
        pytest.skip("dockerd and containerd need root")


@contextlib.contextmanager
def _running(argv: Sequence[str | Path], log: Path, answers: Callable[[], bool]) -> Iterator[None]:
    """Run a daemon until the block is left; the block is entered when it answers."""
    command = [str(part) for part in argv]
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT) as process,
        ended_at_last(process),
    ):
        give_up = time.monotonic() + START_LIMIT
        while not answers():
            if process.poll() is not None:
                raise ProgramError(command, f"exit code {process.returncode}", log.read_bytes())
            if time.monotonic() > give_up:
                raise ProgramError(command, f"does not answer after {START_LIMIT} s", log.read_bytes())
            time.sleep(0.02)
        yield


# ── containerd ──

# No networks, no mounts but bind mounts, nothing outside of the folder.
_PLUGINS_LEFT_OUT = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.overlayfs",
    "io.containerd.snapshotter.v1.zfs",
)


@dataclass(frozen=True)
class Containerd:
    """containerd with everything in `folder`, asked through its own client, ctr."""

    folder: Path

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    def __call__(self, *args: str | Path, **options: Any) -> bytes:
        """Run ctr; options as for `run`."""
        return run("ctr", "--address", self.socket, *args, **options)

    def load(self, archive: Path) -> list[str]:
        """Import an archive and unpack its layers, which checks their diff IDs; return the names it got.

        Raises:
            ProgramError: It was refused, also where ctr only says so and exits with 0.
        """
        command = ["images", "import", "--snapshotter", "native", str(archive)]
        said = self(*command)
        unpacked = re.findall(
            r"^unpacking (\S+) \(sha256:[0-9a-f]{64}\)\.\.\.done$", said.decode(), re.MULTILINE
        )
        if len(unpacked) != len(said.splitlines()):
            raise ProgramError(["ctr", *command], "exit code 0, and more than success", said)
        return unpacked

    def loaded(self, name: str) -> Loaded:
        """Return what containerd holds under a name."""
        (manifest,) = (
            fields[2]
            for line in self("images", "ls", f"name=={name}").decode().splitlines()[1:]
            for fields in [line.split()]
        )
        config = self._content(manifest)["config"]["digest"]
        return Loaded(config, self._content(config)["rootfs"]["diff_ids"])

    def _content(self, digest: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self("content", "get", digest))
        return document

    def remove_all(self) -> None:
        """Remove every image with all its content."""
        if names := self("images", "ls", "--quiet").decode().split():
            self("images", "rm", "--sync", *names)


@contextlib.contextmanager
def running_containerd(folder: Path) -> Iterator[Containerd]:
    """Run containerd in `folder`, whose name must be short (a socket's path has 108 bytes)."""
    daemon, config = Containerd(folder), folder / "containerd.toml"
    # JSON's strings and lists are TOML.
    config.write_text(
        f"version = 2\n"
        f"root = {json.dumps(str(folder / 'root'))}\n"
        f"state = {json.dumps(str(folder / 'state'))}\n"
        f"disabled_plugins = {json.dumps(_PLUGINS_LEFT_OUT)}\n"
        f"[grpc]\n"
        f"address = {json.dumps(str(daemon.socket))}\n"
    )

    def answers() -> bool:
        with contextlib.suppress(ProgramError):
            return bool(daemon("version"))
        return False

    with _running(["containerd", "--config", config], folder / "containerd.log", answers):
        yield daemon


# ── dockerd ──


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
        except BaseException:
            self.close()
            raise


@dataclass(frozen=True)
class Dockerd:
    """dockerd with everything in `folder`, asked through its API: any version of the client would do the same."""

    folder: Path

    @property
    def socket(self) -> Path:
        return self.folder / "docker.sock"

    def ask(self, method: str, path: str, body: IO[bytes] | None = None) -> bytes:
        """Send one request and return the body of the answer.

        Raises:
            ProgramError: The status is not one of success.
            OSError: It cannot be reached, or says nothing for too long.
        """
        with contextlib.closing(_SocketConnection(self.socket, TIME_LIMIT)) as connection:
            connection.request(method, path, body)
            response = connection.getresponse()
            said = response.read()
        if response.status >= 300:
            raise ProgramError(["dockerd", method, path], f"status {response.status}", said)
        return said

    def load(self, archive: Path) -> list[str]:
        """Load an archive; return the names, or the IDs of what has none, that dockerd says.

        Raises:
            ProgramError: It was refused, which dockerd says in a body that began with success.
        """
        with archive.open("rb") as body:
            said = self.ask("POST", "/images/load?quiet=1", body)
        messages = [json.loads(line) for line in said.splitlines()]
        if any("error" in message for message in messages):
            raise ProgramError(["dockerd", "load", str(archive)], "refused", said)
        text = "".join(message.get("stream", "") for message in messages)
        return re.findall(r"^Loaded image(?: ID)?: (\S+)$", text, re.MULTILINE)

    def inspect(self, image: str) -> dict[str, Any]:
        """Return what dockerd knows of a loaded image, by name or ID."""
        found: dict[str, Any] = json.loads(self.ask("GET", f"/images/{urllib.parse.quote(image)}/json"))
        return found

    def loaded(self, name: str) -> Loaded:
        """Return what dockerd holds under a name."""
        found = self.inspect(name)
        return Loaded(found["Id"], found["RootFS"].get("Layers") or [])

    def remove_all(self) -> None:
        """Remove every image: dockerd does not read a layer again whose diff ID it has."""
        for image in json.loads(self.ask("GET", "/images/json")):
            self.ask("DELETE", f"/images/{image['Id']}?force=1")


@contextlib.contextmanager
def running_dockerd(
    folder: Path, containerd: Containerd, *, store: Literal["graph", "containerd"] = "graph"
) -> Iterator[Dockerd]:
    """Run dockerd in `folder`, whose name must be short, without any network; `store` is where it keeps images."""
    daemon, config = Dockerd(folder), folder / "daemon.json"
    # A file of ours, not the machine's; and a key's that Docker 20.10 has in /etc otherwise.
    features = {"containerd-snapshotter": True}
    old = {"deprecated-key-path": str(folder / "key.json")} if _is_old("dockerd") else {}
    config.write_text(json.dumps(old if store == "graph" else {"features": features}))
    argv: list[str | Path] = [
        "dockerd",
        *("--config-file", config),
        *("--host", f"unix://{daemon.socket}"),
        *("--containerd", containerd.socket),
        *("--data-root", folder / "data"),
        *("--exec-root", folder / "exec"),
        *("--pidfile", folder / "pid"),
        *("--storage-driver", "vfs" if store == "graph" else "native"),  # need nothing of the kernel
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        "--ip-forward=false",
        "--userland-proxy=false",
    ]

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return daemon.ask("GET", "/_ping") == b"OK"
        return False

    with _running(argv, folder / "dockerd.log", answers):
        yield daemon


def _is_old(program: str) -> bool:
    return b" 20." in run(program, "--version")


@contextlib.contextmanager
def unmounted(folder: Path) -> Iterator[Path]:
    """Give `folder`; detach afterwards what a daemon that was killed left mounted, and remove it."""
    try:
        yield folder
    finally:
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (mount := line.split()[1]).startswith(f"{folder}/"):
                subprocess.run(["umount", "--lazy", mount], check=False, timeout=TIME_LIMIT)
        shutil.rmtree(folder)
