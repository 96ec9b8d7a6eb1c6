"""Credentials for registries: the caller's own, or those that Docker and podman keep."""

from .auth_files import Credentials
from .stores import CredentialStore, DockerCredentials, MappingCredentials, StaticCredentials

__all__ = ["CredentialStore", "Credentials", "DockerCredentials", "MappingCredentials", "StaticCredentials"]
