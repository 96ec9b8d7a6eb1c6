"""Logins by docker, podman and this package: what one has stored, the others read."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from aiodockersave.sinks.private_file import change_private
from aiodockersave.sources.credentials import Credentials
from aiodockersave.sources.credentials.logins import DockerLogins
from tests.support.faulty_registry import PASSWORD, USER

from .daemons import Dockerd
from .programs import Podman, ProgramError, Registry, htpasswd_auth, run, running_registry
from .pushing import push
from .test_registry import HELLO, HTPASSWD

pytestmark = pytest.mark.interop("docker", "docker-registry", "podman", "skopeo")

KEEPING = """\
#!/bin/sh
echo "$1" >>{folder}/asked
case $1 in
  store) cat >{folder}/kept ;;
  get)   if [ -e {folder}/kept ]; then cat {folder}/kept
         else echo credentials not found in native keychain; exit 1; fi ;;
  erase) rm {folder}/kept ;;
esac
"""
"""A helper that keeps one login."""


class User:
    """A user without any login, whose programs share a home directory.

    Attributes:
        file: Docker's file.
        podmans: podman's own file.
        registry: A registry that asks for ``USER`` and ``PASSWORD``.
        image: An image in it.
    """

    def __init__(
        self, folder: Path, dockerd: Dockerd, podman: Podman, registry: Registry, image: str
    ) -> None:
        self.folder = folder
        self.file = folder / "home" / ".docker" / "config.json"
        self.podmans = folder / "run" / "containers" / "auth.json"
        self.registry = registry
        self.image = f"{registry.address}/{image}"
        self._dockerd = dockerd
        self._podman = podman
        for path in (folder / "home", folder / "run", folder / "bin"):
            path.mkdir()
        self.environ: Mapping[str, str] = {
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "DOCKER_HOST": f"unix://{dockerd.socket}",
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }

    def install_helper(self) -> None:
        program = self.folder / "bin" / "docker-credential-kept"
        program.write_text(KEEPING.format(folder=self.folder))
        program.chmod(0o755)

    def configure(self, path: Path, document: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))

    def run(self, *argv: str | Path, given: str = "") -> bytes:
        return run(*argv, stdin=given.encode(), env=self.environ)

    def ours(self, *arguments: str | Path, given: str = "") -> bytes:
        return self.run(sys.executable, "-m", "aiodockersave", *arguments, given=given)

    # Writers.

    def login_ours(self) -> None:
        self.ours("login", self.registry.address, "-u", USER, "--password-stdin", given=PASSWORD)

    def login_docker(self) -> None:
        self.run("docker", "login", "-u", USER, "--password-stdin", self.registry.address, given=PASSWORD)

    def login_podman(self, *options: str | Path) -> None:
        who = ("-u", USER, "--password-stdin", self.registry.address)
        self.run("podman", "login", "--tls-verify=false", *options, *who, given=PASSWORD)

    # Readers: each fetches the image, which takes the password.

    def read_ours(self) -> None:
        self.ours("save", self.image, "--platform", "linux/amd64", "-o", self.folder / "app.tar")

    def read_docker(self) -> None:
        self.run("docker", "pull", self.image)
        self.run("docker", "image", "rm", self.image)

    def read_podman(self) -> None:
        folder = self._podman.folder
        self.run(
            "podman",
            *("--root", folder / "storage"),
            *("--runroot", folder / "run"),
            *("--tmpdir", folder / "state"),
            *("--storage-driver", "vfs"),
            *("pull", "--tls-verify=false", self.image),
        )
        self._podman.remove_all()

    def read_skopeo(self) -> None:
        self.run("skopeo", "inspect", "--tls-verify=false", f"docker://{self.image}")

    @property
    def readers(self) -> dict[str, Callable[[], None]]:
        return {
            "ours": self.read_ours,
            "docker": self.read_docker,
            "podman": self.read_podman,
            "skopeo": self.read_skopeo,
        }

    def who_reads(self) -> set[str]:
        """Return the programs that can fetch the image now."""
        able = set()
        for name, read in self.readers.items():
            try:
                read()
            except ProgramError as error:
                said = error.output.decode(errors="replace").lower()
                assert any(
                    text in said for text in ("unauthorized", "authentication", "log in", "no basic auth")
                ), said
            else:
                able.add(name)
        return able


EVERYBODY = {"ours", "docker", "podman", "skopeo"}


@pytest.fixture
def user(tmp_path: Path, dockerd: Dockerd, podman: Podman, docker_registry: Registry) -> Iterator[User]:
    image = push(docker_registry, "made/login", "1", HELLO).partition("/")[2]
    folder = tmp_path / "registry"
    folder.mkdir()
    auth = htpasswd_auth(tmp_path, HTPASSWD)
    with running_registry(folder, data=docker_registry.data, auth=auth) as registry:
        yield User(tmp_path, dockerd, podman, registry, image)


def test_without_a_login_nobody_reads(user: User) -> None:
    assert user.who_reads() == set()


@pytest.mark.parametrize("writer", ["ours", "docker", "podman"])
def test_what_is_in_dockers_file_is_read_by_all(user: User, writer: str) -> None:
    if writer == "ours":
        user.login_ours()
    elif writer == "docker":
        user.login_docker()
    else:  # which makes no file of its own then
        user.configure(user.file, {})
        user.login_podman("--authfile", user.file)
    assert set(json.loads(user.file.read_bytes())["auths"]) == {user.registry.address}
    assert not user.podmans.exists()
    assert user.who_reads() == EVERYBODY

    user.ours("logout", user.registry.address)
    assert user.who_reads() == set()


def test_what_podman_has_in_its_own_file_docker_does_not_read(user: User) -> None:
    """The reason why a login is not written there."""
    user.login_podman()
    assert user.podmans.exists()
    assert user.who_reads() == EVERYBODY - {"docker"}
    user.ours("logout", user.registry.address)
    assert user.who_reads() == set()


def test_an_old_password_in_podmans_file_does_not_win(user: User) -> None:
    user.configure(
        user.podmans, {"auths": {user.registry.address: {"auth": "Z29yZG9uOm9sZA=="}}}
    )  # gordon:old
    user.login_ours()
    assert user.who_reads() == EVERYBODY


@pytest.mark.parametrize("writer", ["ours", "docker", "podman"])
def test_each_logs_out_of_what_the_others_stored(user: User, writer: str) -> None:
    user.login_ours()
    if writer == "docker":
        user.run("docker", "logout", user.registry.address)
    elif writer == "podman":
        user.run("podman", "logout", "--authfile", user.file, user.registry.address)
    else:
        user.ours("logout", user.registry.address)
    assert user.who_reads() == set()


@pytest.mark.parametrize("writer", ["ours", "docker"])
@pytest.mark.parametrize("setting", ["credsStore", "credHelpers"])
def test_dockers_helper(user: User, writer: str, setting: str) -> None:
    """The helper has the password, and the file has none; both programs ask the helper."""
    user.install_helper()
    address = user.registry.address
    user.configure(user.file, {setting: "kept" if setting == "credsStore" else {address: "kept"}})
    (user.login_ours if writer == "ours" else user.login_docker)()
    assert json.loads(user.file.read_bytes())["auths"] == {address: {}}
    assert json.loads((user.folder / "kept").read_bytes()) == {
        "ServerURL": address,
        "Username": USER,
        "Secret": PASSWORD,
    }
    assert user.who_reads() >= {"ours", "docker"}
    user.ours("logout", address)
    assert not (user.folder / "kept").exists()
    assert user.who_reads() == set()


def test_podmans_helper(user: User) -> None:
    user.install_helper()
    user.configure(user.podmans, {"credHelpers": {user.registry.address: "kept"}})
    user.login_ours()
    assert (user.folder / "kept").exists()
    assert user.who_reads() == EVERYBODY
    assert "store" in (user.folder / "asked").read_text().split()


def test_the_hub_has_the_names_that_each_knows(user: User) -> None:
    """No registry is asked: the programs only say whom they know there."""
    logins = DockerLogins(change_private, environ=user.environ)
    asyncio.run(logins.store("docker.io", Credentials(USER, PASSWORD)))
    for program in ("podman", "skopeo"):
        assert user.run(program, "login", "--get-login", "docker.io").split() == [USER.encode()]
    nowhere = {**user.environ, "DOCKER_HOST": f"unix://{user.folder}/nowhere"}
    with pytest.raises(ProgramError, match="uthenticating with existing credentials"):
        run("docker", "login", env=nowhere)
