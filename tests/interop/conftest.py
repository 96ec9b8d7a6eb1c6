"""Real programs as fixtures. Each is made once for a test process, with a folder of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .daemons import Containerd, Dockerd, require_daemons, running_containerd, running_dockerd, unmounted
from .programs import Podman, Registry, require_program, running_registry

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # those of all folders
        if HERE in item.path.parents and not item.get_closest_marker("interop"):
            item.add_marker("interop")


@pytest.fixture(scope="session")
def podman_storage() -> Iterator[Podman]:
    """podman with an own storage, for the whole session."""
    require_program("podman")
    # Not pytest's folder: podman refuses a run root of more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="podman-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Podman(Path(folder))


@pytest.fixture
def podman(podman_storage: Podman) -> Iterator[Podman]:
    """podman without any image."""
    yield podman_storage
    podman_storage.remove_all()


@pytest.fixture(scope="session")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A docker-registry that listens; tests keep apart by repository names of their own."""
    require_program("docker-registry")
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="session")
def containerd_storage() -> Iterator[Containerd]:
    """containerd with an own storage, for the whole session."""
    require_daemons()
    # Not pytest's folder: its name is too long for a socket's.
    folder = Path(tempfile.mkdtemp(prefix="containerd-", dir="/tmp"))
    with unmounted(folder), running_containerd(folder) as containerd:
        yield containerd


@pytest.fixture(scope="session")
def dockerd_storage(containerd_storage: Containerd) -> Iterator[Dockerd]:
    """dockerd with an own storage, for the whole session."""
    folder = Path(tempfile.mkdtemp(prefix="docker-", dir="/tmp"))
    with unmounted(folder), running_dockerd(folder, containerd_storage) as dockerd:
        yield dockerd


@pytest.fixture
def containerd(containerd_storage: Containerd) -> Iterator[Containerd]:
    """containerd without any image."""
    yield containerd_storage
    containerd_storage.remove_all()


@pytest.fixture
def dockerd(dockerd_storage: Dockerd) -> Iterator[Dockerd]:
    """dockerd without any image."""
    yield dockerd_storage
    dockerd_storage.remove_all()
