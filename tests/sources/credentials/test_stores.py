"""The credentials that come out of the files of Docker and podman, as a table.

Each row says where its outcome is documented. *man* is containers-auth.json(5); *c/image* the package
pkg/docker/config of containers/image, which is podman's and skopeo's; *docker* the packages cli/config/configfile and
cli/config/credentials of docker/cli; *protocol* the client of docker-credential-helpers; *ours* a choice of this
project where the two differ, or stop altogether. Rows marked ``skopeo`` are asked of the real program too.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import pickle
import shutil
import time
import types
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiodockersave.core.errors import ConfigurationError, InvalidInputError
from aiodockersave.sources.credentials import (
    Credentials,
    CredentialStore,
    DockerCredentials,
    MappingCredentials,
    StaticCredentials,
)
from aiodockersave.sources.credentials import auth_files as _auth_files
from aiodockersave.sources.credentials import helper as credential_helper
from tests.interop.programs import ProgramError, run
from tests.support.clock import LoopClock
from tests.support.interruption import WAYS, Driver, Way, outcome_of

LIMIT = 60.0  # seconds for anything that is waited for
SECRET = "s3cret"  # in every secret of this file, so that none can hide
NOT_FOUND = "credentials not found in native keychain"

AUTH_JSON = "run/containers/auth.json"
CONFIG_AUTH_JSON = "home/.config/containers/auth.json"
DOCKER_JSON = "home/.docker/config.json"
DOCKERCFG = "home/.dockercfg"


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def entry(username: str) -> dict[str, str]:
    return {"auth": b64(f"{username}:{SECRET}")}


def auths(**entries: Any) -> dict[str, Any]:
    return {"auths": entries}


def user(username: str) -> Credentials:
    return Credentials(username, SECRET)


def saying(answer: str | Mapping[str, object], *, status: int = 0) -> str:
    """Return a helper's script with an answer; ``$server`` in it is the server that was asked for."""
    text = (answer if isinstance(answer, str) else json.dumps(answer)).replace('"', '\\"')
    return f'read -r server; [ "$1" = get ] && printf %s "{text}"; exit {status}'


KNOWS = saying({"ServerURL": "$server", "Username": "$server", "Secret": SECRET})
"""A helper that has something for every server, and shows in the username which it was asked for."""
HAS_NOTHING = saying(NOT_FOUND, status=1)
NEVER = "echo this one is not to be asked; exit 3"


@dataclass(frozen=True)
class Case:
    id: str
    files: Mapping[str, object]
    expected: Credentials | None
    registry: str = "quay.io"
    repository: str = "team/app"
    helpers: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    authfile: str | None = None
    warnings: tuple[str, ...] = ()
    skopeo: bool = False


def one(key: str, place: str = AUTH_JSON) -> dict[str, object]:
    return {place: auths(**{key: entry("me")})}


def hub(case: str, files: Mapping[str, object], **more: Any) -> Case:
    more = {"expected": user("me"), "registry": "docker.io", "repository": "library/alpine", **more}
    return Case(case, files, **more)


KEYS = [
    # man: the key is the hostname
    Case("key: a host", one("quay.io"), user("me"), skopeo=True),
    # docker login of a host, file_store.go
    Case("key: a host, by docker", one("quay.io", DOCKER_JSON), user("me"), skopeo=True),
    # man: the key of Docker Hub is "docker.io"
    hub("key: hub, by podman", one("docker.io"), skopeo=True),
    # docker: registry.IndexServer is the key of Docker Hub
    hub("key: hub, by docker", one("https://index.docker.io/v1/", DOCKER_JSON), skopeo=True),
    # c/image normalizeRegistry: these are Docker Hub too
    hub("key: hub, index.docker.io", one("index.docker.io"), skopeo=True),
    hub("key: hub, registry-1.docker.io", one("registry-1.docker.io"), skopeo=True),
    hub("key: hub, https://registry-1.docker.io/v2/", one("https://registry-1.docker.io/v2/"), skopeo=True),
    # docker ConvertToHostname: cut at the first slash
    hub("key: hub, without scheme", one("index.docker.io/v1/", DOCKER_JSON)),
    # the caller's name of Docker Hub may be any of them
    hub("registry: index.docker.io", one("docker.io"), registry="index.docker.io"),
    # docker ConvertToHostname, c/image normalizeAuthFileKey: scheme and path of an address do not count
    Case("key: https://", one("https://quay.io", DOCKER_JSON), user("me"), skopeo=True),
    Case("key: https:// and slash", one("https://quay.io/", DOCKER_JSON), user("me"), skopeo=True),
    Case("key: http:// and v1", one("http://quay.io/v1/", DOCKER_JSON), user("me"), skopeo=True),
    Case("key: https:// and v2", one("https://quay.io/v2/", DOCKER_JSON), user("me"), skopeo=True),
    # docker ConvertToHostname; podman takes it for the path v2
    Case("key: v2 without scheme", one("quay.io/v2", DOCKER_JSON), user("me")),
    Case("key: v1 and slash without scheme", one("quay.io/v1/", DOCKER_JSON), user("me")),
    # docker and c/image compare host and port as text
    Case("key: host and port", one("quay.io:5000"), user("me"), "quay.io:5000", skopeo=True),
    Case("key: https:// and port", one("https://quay.io:5000/v1/"), user("me"), "quay.io:5000", skopeo=True),
    Case("key: other port", one("quay.io:5000"), None, "quay.io:5001", skopeo=True),
    Case("key: port, registry without", one("quay.io:443"), None, skopeo=True),
    Case("key: https and 443, registry without", one("https://quay.io:443"), None, skopeo=True),
    Case("key: no port, registry with", one("quay.io"), None, "quay.io:443", skopeo=True),
    Case("key: IPv6", one("[::1]:5000"), user("me"), "[::1]:5000"),
    Case("key: other host", one("notquay.io"), None, skopeo=True),
    # c/image: "For registry keys we prefer exact matches as well"
    Case(
        "key: the name before an address",
        {DOCKER_JSON: auths(**{"https://quay.io/v1/": entry("old"), "quay.io": entry("me")})},
        user("me"),
        skopeo=True,
    ),
    # man: from the most specific to the least specific
    Case(
        "path: the repository's own",
        {
            AUTH_JSON: auths(
                **{"quay.io": entry("a"), "quay.io/team/app": entry("me"), "quay.io/team": entry("b")}
            )
        },
        user("me"),
        skopeo=True,
    ),
    Case(
        "path: one above",
        {
            AUTH_JSON: auths(
                **{"quay.io": entry("a"), "quay.io/team": entry("me"), "quay.io/team/b": entry("b")}
            )
        },
        user("me"),
        skopeo=True,
    ),
    Case(
        "path: none, but the registry",
        {
            AUTH_JSON: auths(
                **{"quay.io/tea": entry("a"), "quay.io/team/ap": entry("b"), "quay.io": entry("me")}
            )
        },
        user("me"),
        skopeo=True,
    ),
    Case("path: another", one("quay.io/other"), None, skopeo=True),
    # c/image: "not a feature of ~/.docker/config.json; we support it even for those files"
    Case("path: in docker's file", one("quay.io/team", DOCKER_JSON), user("me"), skopeo=True),
    # c/image: only the path of a key without scheme is a path; docker: https://host/anything is the host
    Case("path: not in an address", one("https://quay.io/other"), user("me"), skopeo=True),
    hub("path: on hub", one("docker.io/library"), skopeo=True),
    # c/image: ~/.dockercfg, whose keys were addresses
    Case("dockercfg: host", {DOCKERCFG: {"quay.io": entry("me")}}, user("me"), skopeo=True),
    hub("dockercfg: hub", {DOCKERCFG: {"https://index.docker.io/v1/": entry("me")}}, skopeo=True),
    Case("dockercfg: bad entry", {DOCKERCFG: {"quay.io": 5}}, None, warnings=("quay.io is not used",)),
]

ENTRIES = [
    # docker decodeAuth: cut at the first colon
    Case(
        "auth: colons in the password",
        {AUTH_JSON: auths(**{"quay.io": {"auth": b64(f"me:{SECRET}:x:")}})},
        Credentials("me", f"{SECRET}:x:"),
        skopeo=True,
    ),
    # docker decodeAuth, c/image: strings.Trim(password, "\x00")
    Case(
        "auth: NUL at the end",
        {AUTH_JSON: auths(**{"quay.io": {"auth": b64(f"me:{SECRET}\0\0")}})},
        user("me"),
        skopeo=True,
    ),
    Case(
        "auth: letters beyond ASCII",
        {AUTH_JSON: auths(**{"quay.io": {"auth": b64(f"jörg:ü{SECRET}")}})},
        Credentials("jörg", f"ü{SECRET}"),
        skopeo=True,
    ),
    # Go's base64.StdEncoding passes over line ends
    Case(
        "auth: line ends",
        {
            AUTH_JSON: auths(
                **{"quay.io": {"auth": b64(f"me:{SECRET}")[:6] + "\r\n" + b64(f"me:{SECRET}")[6:]}}
            )
        },
        user("me"),
        skopeo=True,
    ),
    # docker types.AuthConfig has both; podman reads `auth` alone
    Case(
        "plain username and password",
        {DOCKER_JSON: auths(**{"quay.io": {"username": "me", "password": SECRET}})},
        user("me"),
    ),
    # docker LoadFromReader: `auth` overwrites them
    Case(
        "auth before plain",
        {DOCKER_JSON: auths(**{"quay.io": {"username": "old", "password": "x", **entry("me")}})},
        user("me"),
        skopeo=True,
    ),
    # docker: as `docker login` to Azure writes it
    Case(
        "identity token with a user",
        {DOCKER_JSON: auths(**{"quay.io": {"auth": b64("00000000-0000:"), "identitytoken": SECRET}})},
        Credentials("00000000-0000", "", identity_token=SECRET),
        skopeo=True,
    ),
    # docker types.AuthConfig.IdentityToken; podman wants an `auth` beside it
    Case(
        "identity token alone",
        {DOCKER_JSON: auths(**{"quay.io": {"identitytoken": SECRET}})},
        Credentials("", "", identity_token=SECRET),
    ),
    # docker types.AuthConfig.RegistryToken: "a bearer token to be sent to a registry"
    Case(
        "registry token",
        {DOCKER_JSON: auths(**{"quay.io": {"registrytoken": SECRET}})},
        Credentials("", "", registry_token=SECRET),
    ),
    # c/image: Docker writes {} where a helper has the credentials; "moving on"
    Case(
        "empty entry, then the next file",
        {AUTH_JSON: auths(**{"quay.io": {}}), DOCKER_JSON: auths(**{"quay.io": entry("me")})},
        user("me"),
        skopeo=True,
    ),
    Case("null in an entry", {AUTH_JSON: auths(**{"quay.io": {"auth": None}})}, None, skopeo=True),
    # c/image: nothing in such a file is wrong
    Case("no auths", {AUTH_JSON: {"auths": None}}, None, skopeo=True),
    Case(
        "other settings",
        {DOCKER_JSON: {"psFormat": "x", **auths(**{"quay.io": entry("me")})}},
        user("me"),
        skopeo=True,
    ),
    # docker LoadFromReader: io.EOF is no error (podman: it is one)
    Case("empty file", {AUTH_JSON: b"", **one("quay.io", DOCKER_JSON)}, user("me")),
    # ours, for all of these: docker and podman lose every entry of the file by one of them
    *(
        Case(
            f"bad entry: {what}",
            {AUTH_JSON: auths(**{"bad.example": value, "quay.io": entry("me")})},
            user("me"),
            warnings=(f"bad.example is not used: {said}",),
        )
        for what, value, said in [
            ("not base64", {"auth": "!!!!" + b64(f"me:{SECRET}")}, '"auth" is not base64'),
            ("base64 cut off", {"auth": b64(f"me:{SECRET}x")[:-1]}, '"auth" is not base64'),
            ("not ASCII", {"auth": f"{SECRET}é"}, '"auth" is not base64'),
            ("no colon", {"auth": b64(SECRET)}, '"auth" is not the base64 of username:password'),
            ("no user", {"auth": b64(f":{SECRET}")}, '"auth" is not the base64 of username:password'),
            ("not UTF-8", {"auth": b64(b"me:\xff" + SECRET.encode())}, '"auth" is not UTF-8'),
            ("auth of a wrong type", {"auth": [SECRET]}, '"auth" is not a text'),
            ("token of a wrong type", {"identitytoken": 5}, '"identitytoken" is not a text'),
            ("token with line ends", {"registrytoken": f"a\r\n{SECRET}"}, '"registrytoken" has characters'),
            ("half a surrogate pair", {"username": "\ud800", "password": SECRET}, '"username" is not a text'),
            ("a list", [SECRET], "it is not an object"),
            ("a text", SECRET, "it is not an object"),
        ]
    ),
    Case(
        "bad entry for this registry, then the next file",
        {AUTH_JSON: auths(**{"quay.io": {"auth": "!"}}), DOCKER_JSON: auths(**{"quay.io": entry("me")})},
        user("me"),
        warnings=("quay.io is not used",),
    ),
    Case(
        "auths is a list",
        {AUTH_JSON: {"auths": [SECRET]}, **one("quay.io", DOCKER_JSON)},
        user("me"),
        warnings=('"auths" is not used',),
    ),
    Case(
        "bad entry whose key has a password",
        {AUTH_JSON: auths(**{f"https://me:{SECRET}@quay.io\x1b[31m": 5})},
        None,
        warnings=(r"the entry 'quay.io\x1b[31m' is not used",),
    ),
]

PLACES = [
    # man: "the explicit override using an option of the calling application"; c/image userSpecifiedPath: no other
    Case(
        "place: authfile",
        {
            "mine.json": auths(**{"quay.io": entry("me")}),
            **one("quay.io"),
            "env.json": auths(**{"quay.io": entry("b")}),
        },
        user("me"),
        authfile="mine.json",
        env={"REGISTRY_AUTH_FILE": "env.json"},
        skopeo=True,
    ),
    Case(
        "place: authfile alone", {"mine.json": {}, **one("quay.io")}, None, authfile="mine.json", skopeo=True
    ),
    Case(
        "place: REGISTRY_AUTH_FILE alone",
        {"env.json": auths(**{"example.com": entry("a")}), **one("quay.io")},
        None,
        env={"REGISTRY_AUTH_FILE": "env.json"},
        skopeo=True,
    ),
    Case(
        "place: REGISTRY_AUTH_FILE",
        {"env.json": auths(**{"quay.io": entry("me")}), **one("docker.io")},
        user("me"),
        env={"REGISTRY_AUTH_FILE": "env.json"},
        skopeo=True,
    ),
    # c/image: a file that is not there has no entries; ours: it was named, so it is said
    Case(
        "place: REGISTRY_AUTH_FILE missing",
        one("quay.io"),
        None,
        env={"REGISTRY_AUTH_FILE": "none.json"},
        warnings=("none.json is not used: No such file or directory",),
        skopeo=True,
    ),
    # man: the order
    Case(
        "place: XDG_RUNTIME_DIR first",
        {AUTH_JSON: auths(**{"quay.io": entry("me")}), CONFIG_AUTH_JSON: auths(**{"quay.io": entry("b")})},
        user("me"),
        skopeo=True,
    ),
    Case(
        "place: ~/.config before docker",
        {CONFIG_AUTH_JSON: auths(**{"quay.io": entry("me")}), DOCKER_JSON: auths(**{"quay.io": entry("b")})},
        user("me"),
        skopeo=True,
    ),
    Case(
        "place: docker before dockercfg",
        {DOCKER_JSON: auths(**{"quay.io": entry("me")}), DOCKERCFG: {"quay.io": entry("b")}},
        user("me"),
        skopeo=True,
    ),
    # man: a path in a later file does not beat a registry in an earlier one
    Case(
        "place: before path",
        {
            AUTH_JSON: auths(**{"quay.io": entry("me")}),
            DOCKER_JSON: auths(**{"quay.io/team/app": entry("b")}),
        },
        user("me"),
        skopeo=True,
    ),
    Case(
        "place: XDG_CONFIG_HOME",
        {
            "config/containers/auth.json": auths(**{"quay.io": entry("me")}),
            CONFIG_AUTH_JSON: auths(**{"quay.io": entry("b")}),
        },
        user("me"),
        env={"XDG_CONFIG_HOME": "config"},
        skopeo=True,
    ),
    # docker, c/image: instead of ~/.docker
    Case(
        "place: DOCKER_CONFIG",
        {
            "docker/config.json": auths(**{"quay.io": entry("me")}),
            DOCKER_JSON: auths(**{"quay.io": entry("b")}),
        },
        user("me"),
        env={"DOCKER_CONFIG": "docker"},
        skopeo=True,
    ),
    # docker GetCredentialsStore: the variable first, then its file
    Case(
        "place: DOCKER_AUTH_CONFIG",
        one("quay.io", DOCKER_JSON),
        user("env"),
        env={"DOCKER_AUTH_CONFIG": json.dumps(auths(**{"quay.io": entry("env")}))},
    ),
    Case(
        "place: DOCKER_AUTH_CONFIG without it",
        one("quay.io", DOCKER_JSON),
        user("me"),
        env={"DOCKER_AUTH_CONFIG": json.dumps({**auths(**{"a.example": entry("env")}), "credsStore": "x"})},
    ),
    # docker: "Failed to create credential store from DOCKER_AUTH_CONFIG", and its file
    Case(
        "place: DOCKER_AUTH_CONFIG broken",
        one("quay.io", DOCKER_JSON),
        user("me"),
        env={"DOCKER_AUTH_CONFIG": f"{{{SECRET}"},
        warnings=("$DOCKER_AUTH_CONFIG: it is not JSON",),
    ),
    # ours: podman stops
    Case(
        "place: a directory",
        {AUTH_JSON + "/x": "", **one("quay.io", DOCKER_JSON)},
        user("me"),
        warnings=("auth.json is not used: not a regular file",),
    ),
    Case("place: nothing anywhere", {}, None, skopeo=True),
]


def helped(
    case: str, settings: Mapping[str, object], expected: Credentials | None, helper: str, **more: Any
) -> Case:
    """A row whose only file is Docker's, with a helper ``x``."""
    return Case(case, {DOCKER_JSON: settings}, expected, helpers={"x": helper}, **more)


FOR_QUAY: Mapping[str, object] = {"credHelpers": {"quay.io": "x"}}
FOR_ALL: Mapping[str, object] = {"credsStore": "x"}
FAULT = "the credential helper docker-credential-x gives nothing for quay.io: "

HELPERS = [
    # man, docker login: the helper of the registry, asked for the key
    helped("helper: of the registry", FOR_QUAY, user("quay.io"), KNOWS, skopeo=True),
    Case("helper: in podman's file", {AUTH_JSON: FOR_QUAY}, user("quay.io"), helpers={"x": KNOWS}, skopeo=True),
    helped("helper: of another registry", {"credHelpers": {"a.example": "x"}}, None, NEVER, skopeo=True),
    helped("helper: of another port", {"credHelpers": {"quay.io:443": "x"}}, None, NEVER, skopeo=True),
    # man: with a helper, "the base64 encoded authentication will not be used"
    helped("helper: before auths", {**FOR_QUAY, **auths(**{"quay.io": entry("b")})}, user("quay.io"), KNOWS, skopeo=True),
    helped("helper: before a path", {**FOR_QUAY, **auths(**{"quay.io/team": entry("b")})}, user("quay.io"), KNOWS, skopeo=True),
    helped("helper: instead of auths", {**FOR_QUAY, **auths(**{"quay.io": entry("b")})}, None, HAS_NOTHING, skopeo=True),
    # c/image getCredentialsFromAuthFiles: the next file
    Case(
        "helper: has nothing, then the next file",
        {AUTH_JSON: FOR_QUAY, DOCKER_JSON: auths(**{"quay.io": entry("me")})},
        user("me"),
        helpers={"x": HAS_NOTHING},
        skopeo=True,
    ),
    # docker: its key of hub is asked for
    hub(
        "helper: hub by docker's key",
        {DOCKER_JSON: {"credHelpers": {"https://index.docker.io/v1/": "x"}}},
        expected=user("https://index.docker.io/v1/"),
        helpers={"x": KNOWS},
    ),
    # c/image: its own
    hub(
        "helper: hub by podman's key",
        {AUTH_JSON: {"credHelpers": {"docker.io": "x"}}},
        expected=user("docker.io"),
        helpers={"x": KNOWS},
        skopeo=True,
    ),
    # docker login, "Credential stores"; podman does not know credsStore
    helped("store: any registry", FOR_ALL, user("quay.io"), KNOWS),
    helped("store: any port", FOR_ALL, user("quay.io:5000"), KNOWS, registry="quay.io:5000"),
    hub(
        "store: hub",
        {DOCKER_JSON: FOR_ALL},
        expected=user("https://index.docker.io/v1/"),
        helpers={"x": KNOWS},
    ),
    # docker getConfiguredCredentialStore: the registry's helper, "or the default credsStore"
    Case(
        "store: not where there is a helper",
        {DOCKER_JSON: {"credsStore": "y", **FOR_QUAY}},
        user("quay.io"),
        helpers={"x": KNOWS, "y": NEVER},
        skopeo=True,
    ),
    # docker getConfiguredCredentialStore: an empty name is the file
    helped("store: not for an empty helper", {**FOR_ALL, "credHelpers": {"quay.io": ""}, **auths(**{"quay.io": entry("me")})}, user("me"), NEVER),
    # ours: podman takes the entry at once, docker only the store's
    helped("store: has nothing, then auths", {**FOR_ALL, **auths(**{"quay.io": entry("me")})}, user("me"), HAS_NOTHING, skopeo=True),
    # docker: the marker beside a store
    helped("store: beside an empty entry", {**FOR_ALL, **auths(**{"quay.io": {}})}, user("quay.io"), KNOWS),
    # c/image: paths are podman's, and so is their order
    helped("store: after a path", {**FOR_ALL, **auths(**{"quay.io/team": entry("me")})}, user("me"), NEVER, skopeo=True),
    # docker nativeStore.Get: when the store fails, what the file has
    helped(
        "store: fails, then auths",
        {**FOR_ALL, **auths(**{"quay.io": entry("me")})},
        user("me"),
        saying("no", status=1),
        warnings=(FAULT + "it fails with exit status 1",),
        skopeo=True,
    ),
    # protocol: <token>
    helped("answer: token", FOR_QUAY, Credentials("", "", identity_token=SECRET), saying({"Username": "<token>", "Secret": SECRET})),
    # protocol: client.Get cuts white space around the message
    helped("answer: nothing, with a line end", FOR_QUAY, None, f"echo '{NOT_FOUND}'; exit 1", skopeo=True),
    # protocol: nothing at all is no credentials
    helped("answer: empty object", FOR_QUAY, None, saying("{}"), skopeo=True),
    # Go's encoding/json does not mind the case of names
    helped("answer: lower case", FOR_QUAY, user("me"), saying({"username": "me", "secret": SECRET}), skopeo=True),
    helped("answer: without reading the question", FOR_QUAY, user("me"), f"""printf '{{"Username":"me","Secret":"{SECRET}"}}'""", skopeo=True),
    # ours, for all below: docker goes on without a word (ResolveAuthConfig drops the error), podman stops
    *(
        helped(f"bad helper: {what}", FOR_QUAY, None, helper, warnings=(FAULT + said,))
        for what, helper, said in [
            ("fails", saying(f"error with {SECRET}", status=2), "it fails with exit status 2"),
            ("fails and answers", saying({"Username": "a", "Secret": SECRET}, status=1), "it fails with exit status 1"),
            ("fails and complains", f"echo error with {SECRET} >&2; exit 2", "it fails with exit status 2"),
            ("is killed", "kill -9 $$", "it fails with signal 9"),
            ("answers a text", saying(f"hello {SECRET}"), "it answers with something that is not a JSON object"),
            ("answers nothing", "exit 0", "it answers with something that is not a JSON object"),
            ("answers that there is nothing, and succeeds", saying(NOT_FOUND), "it answers with something that is not a JSON object"),
            ("answers a list", saying(f'[\\"{SECRET}\\"]'.replace("\\", "")), "it answers with something that is not a JSON object"),
            ("answers bytes", r"printf '\377\376'", "it answers with something that is not a JSON object"),
            ("answers cut off", saying(f'{{"Username":"a","Secret":"{SECRET}'), "it answers with something that is not a JSON object"),
            ("answers a number", saying({"Username": "a", "Secret": 5}), "its Username or Secret is not a text"),
            ("answers half a surrogate pair", r"""printf '{"Username":"\\ud800","Secret":"x"}'""", "its Username or Secret is not a text"),
            ("answers without end", "while :; do printf %01000d 7; done", "it answers with more than 1048576 bytes"),
            ("cannot start", "#!/nonexistent/interpreter", "it cannot be started: No such file or directory"),
        ]
    ),
    helped("bad helper: missing", {"credHelpers": {"quay.io": "z"}}, None, NEVER, warnings=("docker-credential-z gives nothing for quay.io: there is no such program",)),
    helped("bad helper: a path", {"credHelpers": {"quay.io": "../x"}}, None, NEVER, warnings=("docker-credential-../x gives nothing for quay.io: its name",)),
    helped("bad helper: options", {"credHelpers": {"quay.io": "x get; rm"}}, None, NEVER, warnings=("its name is made of other characters",)),
    helped("bad helper: line end", {"credHelpers": {"quay.io": "x\n"}}, None, NEVER, warnings=(r"'docker-credential-x\n' gives nothing",)),
    # Go's exec.LookPath: not what lies in the current directory
    helped("bad helper: relative PATH", FOR_QUAY, None, NEVER, env={"PATH": ".:bin::"}, warnings=("no such program",)),
    helped("bad helper: no PATH", FOR_QUAY, None, NEVER, env={"PATH": ""}, warnings=("no such program",)),
    helped("bad helper: name is a number", {"credHelpers": {"quay.io": 5}, **auths(**{"quay.io": entry("me")})}, user("me"), NEVER, warnings=("the helper for quay.io is not used",)),
    helped("bad helper: names are a list", {"credHelpers": ["x"], **auths(**{"quay.io": entry("me")})}, user("me"), NEVER, warnings=('"credHelpers" is not used',)),
    helped("bad helper: store is a number", {"credsStore": 5, **auths(**{"quay.io": entry("me")})}, user("me"), NEVER, warnings=('"credsStore" is not used',)),
    Case(
        "bad helper: then the next file",
        {AUTH_JSON: FOR_QUAY, DOCKER_JSON: auths(**{"quay.io": entry("me")})},
        user("me"),
        helpers={"x": "exit 7"},
        warnings=(FAULT + "it fails with exit status 7",),
    ),
]  # fmt: skip

CASES = [*KEYS, *ENTRIES, *PLACES, *HELPERS]


# ── a computer with these files ──


class Computer:
    """A folder with a home, a runtime directory and helpers, and the environment in which they are found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        for name in ("home", "run", "bin"):
            (folder / name).mkdir()
        self.environ = {
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "PATH": str(self.bin),
        }
        self.warnings: list[str] = []

    def write(self, name: str, content: object) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    def install(self, name: str, script: str) -> None:
        path = self.bin / f"docker-credential-{name}"
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def credentials(self, authfile: Path | None = None, helper_timeout: float = LIMIT) -> DockerCredentials:
        return DockerCredentials(
            authfile=authfile,
            environ=self.environ,
            on_warning=self.warnings.append,
            helper_timeout=helper_timeout,
        )


@pytest.fixture(autouse=True)
def _no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_auth_files, "SYSTEM_FILE", str(tmp_path / "etc" / "auth.json"))


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computer:
    monkeypatch.chdir(tmp_path)  # where relative paths would lead to something
    return Computer(tmp_path)


def set_up(computer: Computer, case: Case) -> Path | None:
    for name, content in case.files.items():
        computer.write(name, content)
    for name, script in case.helpers.items():
        computer.install(name, script)
    for name, value in case.env.items():
        is_path = name in {"REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "DOCKER_CONFIG"}
        computer.environ[name] = str(computer.folder / value) if is_path else value
    return None if case.authfile is None else computer.folder / case.authfile


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_the_table(
    computer: Computer, case: Case, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    authfile = set_up(computer, case)

    found = await computer.credentials(authfile).get(case.registry, case.repository)

    assert found == case.expected
    assert len(computer.warnings) == len(case.warnings)
    for said, expected in zip(computer.warnings, case.warnings, strict=True):
        assert expected in said
        assert said.isprintable()
    assert SECRET not in "".join([*computer.warnings, caplog.text, repr(found), str(found), f"{found}"])
    assert capfd.readouterr() == ("", "")  # what a helper says besides is not shown


@pytest.mark.interop("skopeo")
@pytest.mark.parametrize("case", [case for case in CASES if case.skopeo], ids=lambda case: case.id)
def test_the_table_by_skopeo(computer: Computer, case: Case) -> None:
    authfile = set_up(computer, case)
    skopeo = shutil.which("skopeo")  # before the PATH is the computer's
    assert skopeo is not None
    expected = None if case.expected is None else case.expected.username
    options = [] if authfile is None else ["--authfile", str(authfile)]
    try:
        username = run(
            skopeo,
            "login",
            "--get-login",
            *options,
            f"{case.registry}/{case.repository}",
            env=computer.environ,
        )
    except ProgramError as error:
        assert "not logged into" in error.output.decode()
        username = None
    assert (username and username.decode().strip()) == expected


def test_the_table_has_many_rows() -> None:
    assert len(CASES) >= 100
    assert len({case.id for case in CASES}) == len(CASES)


# ── files that cannot be used ──


@dataclass(frozen=True)
class BrokenFile:
    id: str
    content: bytes
    reason: str
    name: str = AUTH_JSON


BROKEN = [
    BrokenFile("no JSON", b'{"auths": {"quay.io": {"auth": "' + SECRET.encode(), "it is not JSON"),
    BrokenFile("no object", f'["{SECRET}"]'.encode(), "it is not a JSON object"),
    BrokenFile("not UTF-8", b'{"auths": {"\xff": "' + SECRET.encode() + b'"}}', "it is not UTF-8"),
    BrokenFile("byte order mark", b"\xef\xbb\xbf{}", "it is not JSON"),
    BrokenFile("nested", b'{"auths":' + b"[" * 100_000, "it is nested too deeply"),
    BrokenFile("too large", SECRET.encode() * (1 << 18), "it is larger than 1048576 bytes"),
    BrokenFile("docker's", b"{", "it is not JSON", DOCKER_JSON),
    BrokenFile("dockercfg", b"[]", "it is not a JSON object", DOCKERCFG),
]


def chain(error: BaseException | None) -> list[BaseException]:
    """Return an error with all its causes and contexts."""
    return [] if error is None else [error, *chain(error.__cause__), *chain(error.__context__)]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.id)
async def test_a_broken_file_is_an_error_that_names_it(computer: Computer, broken: BrokenFile) -> None:
    path = computer.write(broken.name, broken.content)
    with pytest.raises(ConfigurationError) as caught:
        await computer.credentials().get("quay.io", "team/app")
    assert caught.value.path == str(path)
    assert broken.reason in caught.value.reason
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert SECRET not in "".join(repr(vars(error)) + repr(error) for error in chain(caught.value))


SPELLINGS: dict[str, tuple[str, str | None]] = {
    "another case": ('{"AUTHS":{"r.example":{"AUTH":"%s"}}}', "gordon"),
    "Kelvin and long s": ('{"authſ":{"r.example":{"auth":"%s"}}}', "gordon"),
    "a ligature": ('{"auths":{"r.example":{"auﬅh":"%s"}}}', None),
    "a wide letter": ('{"auｔhs":{"r.example":{"auth":"%s"}}}', None),
    "two spellings add up": ('{"auths":{"r.example":{"auth":"%s"}},"Auths":{"x.example":{}}}', "gordon"),
    "null between": ('{"auths":{"r.example":{"auth":"%s"}},"Auths":null}', None),
    "the last counts": ('{"auths":{"r.example":{"auth":"eDp4","Auth":"%s"}}}', "gordon"),
    "null changes nothing": ('{"auths":{"r.example":{"auth":"%s","Auth":null}}}', "gordon"),
}


@pytest.mark.parametrize(("text", "username"), SPELLINGS.values(), ids=SPELLINGS)
def test_names_in_a_file_are_matched_as_go_matches_them(text: str, username: str | None) -> None:
    file = _auth_files.Place("$DOCKER_AUTH_CONFIG", text=text % b64("gordon:secret")).read()
    found = file.entries.get("r.example")
    assert (found and found.username) == username


async def test_files_after_the_first_with_credentials_are_not_read(computer: Computer) -> None:
    computer.write(AUTH_JSON, auths(**{"quay.io": entry("me")}))
    computer.write(DOCKER_JSON, b"broken")
    assert await computer.credentials().get("quay.io", "team/app") == user("me")


@pytest.mark.parametrize("kind", ["missing", "directory", "FIFO", "in a file"])
async def test_the_named_file_must_be_there(computer: Computer, kind: str) -> None:
    path = computer.folder / "mine.json"
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "in a file":
        computer.write("file", b"")
        path = computer.folder / "file" / "mine.json"
    computer.write(AUTH_JSON, auths(**{"quay.io": entry("me")}))
    with pytest.raises(ConfigurationError, match=r"mine\.json: "):
        await computer.credentials(path).get("quay.io", "team/app")


@pytest.mark.parametrize("registry", ["quay.io\nb.example", "quay io", "quày.io"])
async def test_a_registry_with_strange_characters_is_refused(computer: Computer, registry: str) -> None:
    with pytest.raises(InvalidInputError, match="not the name of a registry"):
        await computer.credentials().get(registry, "team/app")


# ── places that depend on the user ──


def place_names(environ: Mapping[str, str], home: str | None = None) -> list[str]:
    return [place.path for place in _auth_files.places(None, environ, home)]


ROOT_TAIL = ["/h/.config/containers/auth.json", "/h/.docker/config.json", "/h/.dockercfg"]


@pytest.mark.parametrize(
    ("uid", "environ", "expected"),
    [
        pytest.param(1000, {}, ["/run/containers/1000/auth.json", *ROOT_TAIL], id="user"),
        pytest.param(
            1000, {"INVOCATION_ID": "1"}, ["/run/containers/1000/auth.json", *ROOT_TAIL], id="user's unit"
        ),
        pytest.param(0, {}, ["/run/containers/0/auth.json", *ROOT_TAIL, "SYSTEM"], id="root"),
        pytest.param(
            0, {"INVOCATION_ID": "1"}, ["SYSTEM", "/run/containers/0/auth.json", *ROOT_TAIL], id="root's unit"
        ),
        pytest.param(0, {"REGISTRY_AUTH_FILE": "/f"}, ["/f"], id="named"),
    ],
)
def test_order_of_places(
    monkeypatch: pytest.MonkeyPatch, uid: int, environ: dict[str, str], expected: list[str]
) -> None:
    """containers-auth.json(5): the system's file is root's, preferred "inside systemd", else last."""
    monkeypatch.setattr(os, "getuid", lambda: uid)
    monkeypatch.setattr(_auth_files, "SYSTEM_FILE", "SYSTEM")
    assert place_names({"HOME": "/h", **environ}) == expected
    assert place_names({"HOME": "/other", **environ}, "/h") == expected
    monkeypatch.setenv("HOME", "/h")  # what the user's home is, where there is no variable
    assert place_names(environ) == expected


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604])
async def test_the_system_file_must_be_private(
    computer: Computer, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """containers-auth.json(5): it must not be readable by others, "or a fatal error will occur"."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    path = computer.write("etc/auth.json", auths(**{"quay.io": entry("me")}))
    path.chmod(mode)
    getting = computer.credentials().get("quay.io", "team/app")
    if mode == 0o600:
        assert await getting == user("me")
    else:
        with pytest.raises(
            ConfigurationError, match=r"auth\.json: others can read it; make it private with chmod 600"
        ):
            await getting


async def test_defaults_are_the_environment_of_the_process_and_the_log(
    computer: Computer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    computer.write(AUTH_JSON, auths(**{"quay.io": entry("me"), "a.example": 5}))
    for name in ("REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "DOCKER_AUTH_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in computer.environ.items():
        monkeypatch.setenv(name, value)
    store: CredentialStore = DockerCredentials()
    for _ in range(2):
        assert await store.get("quay.io", "team/app") == user("me")
    (record,) = caplog.records  # said once
    assert (record.name, record.levelname) == ("aiodockersave", "WARNING")
    assert "a.example is not used" in record.getMessage()


async def test_a_login_between_two_calls_is_noticed(computer: Computer) -> None:
    credentials = computer.credentials()
    assert await credentials.get("quay.io", "team/app") is None
    computer.write(AUTH_JSON, auths(**{"quay.io": entry("me")}))
    assert await credentials.get("quay.io", "team/app") == user("me")


# ── helpers that do not end ──

WAITS = 'echo "$$" > {fifo}; exec /bin/sleep 600'
WAITS_IN_A_CHILD = '/bin/sleep 600 & echo "$!" > {fifo}; wait'
LEAVES_A_CHILD = '/bin/sleep 600 & echo "$!" > {fifo}; exit 0'
HANGING = [
    pytest.param(WAITS, id="itself"),
    pytest.param(WAITS_IN_A_CHILD, id="waiting for a child"),
    pytest.param(LEAVES_A_CHILD, id="a child that has its output open"),
]


class Waiting:
    """A helper that hangs, and tells by a FIFO the process that does: itself or its child."""

    def __init__(self, computer: Computer, script: str) -> None:
        self._fifo = computer.folder / "fifo"
        os.mkfifo(self._fifo)
        computer.write(DOCKER_JSON, FOR_QUAY)
        computer.install("x", script.format(fifo=self._fifo))

    async def started(self) -> int:
        """Wait until the helper runs; return the number of the process that hangs."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        fd = os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK)
        loop.add_reader(fd, readable.set)
        try:
            await asyncio.wait_for(readable.wait(), LIMIT)
            return int(os.read(fd, 100))
        finally:
            loop.remove_reader(fd)
            os.close(fd)


async def is_gone(pid: int) -> bool:
    """Wait until a process has ended, reaped or not; return False if it does not."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.mark.parametrize("script", HANGING)
async def test_a_helper_that_hangs_is_killed_with_its_children(computer: Computer, script: str) -> None:
    helper = Waiting(computer, script)
    clock = LoopClock()
    getting = asyncio.create_task(computer.credentials().get("quay.io", "team/app"))
    pid = await helper.started()
    assert not getting.done()
    await clock.put_forward_until(getting, LIMIT + 1)
    assert await getting is None
    assert computer.warnings == [FAULT + "it does not answer within 60 s"]
    assert await is_gone(pid)


@pytest.mark.parametrize("script", HANGING)
async def test_cancelled_while_a_helper_runs_it_is_gone(computer: Computer, script: str) -> None:
    helper = Waiting(computer, script)
    before = children()
    getting = asyncio.create_task(computer.credentials().get("quay.io", "team/app"))
    pid = await helper.started()
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(getting, LIMIT)
    assert await is_gone(pid)
    assert children() <= before
    assert not computer.warnings


def children() -> set[str]:
    """The children of this process, dead ones too."""
    found: set[str] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            found.update(path.read_text().split())
    return found


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(KNOWS, user("quay.io"), id="answers"),
        pytest.param("exec /bin/sleep 600", None, id="hangs"),
    ],
)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_cancelled_at_every_suspension_nothing_is_left(
    computer: Computer, way: Way, twice: bool, script: str, expected: Credentials | None
) -> None:
    computer.write(AUTH_JSON, FOR_QUAY)
    computer.install("x", script)
    credentials = computer.credentials(
        helper_timeout=LIMIT if expected else 0.1
    )  # not a verdict: it never answers
    before = children()

    async def get() -> None:
        assert await credentials.get("quay.io", "team/app") == expected

    for at in range(1, 100):
        driver = Driver(at, twice=twice)
        await asyncio.wait_for(asyncio.create_task(way(driver, get)), LIMIT)
        assert children() <= before
        if driver.suspensions < at:
            break
    else:
        pytest.fail("it never ends")
    assert at > 5


@types.coroutine
def interrupted(coroutine: Coroutine[Any, Any, object], at: int) -> Generator[Any, Any, object]:
    """Run a coroutine and interrupt it at its n-th suspension, as a signal handler would."""
    step: Callable[[], Any] = partial(coroutine.send, None)
    while True:
        try:
            waited_for = step()
        except StopIteration as stop:
            return stop.value
        at -= 1
        if at:
            yield waited_for
            step = partial(coroutine.send, None)
        else:
            step = partial(coroutine.throw, KeyboardInterrupt())


async def test_interrupted_at_every_suspension_nothing_is_left(computer: Computer) -> None:
    """An interrupt may also come while the helper is being started."""
    computer.write(AUTH_JSON, FOR_QUAY)
    computer.install("x", "exec /bin/sleep 600")
    credentials = computer.credentials(helper_timeout=0.1)  # not a verdict: it never answers
    before = children()
    for at in range(1, 100):
        outcome = await outcome_of(interrupted(credentials.get("quay.io", "team/app"), at))
        assert isinstance(outcome, KeyboardInterrupt | None), repr(outcome)
        async with asyncio.timeout(LIMIT):
            while not children() <= before:
                await asyncio.sleep(0.01)
        if outcome is None:
            break
    assert 5 < at < 99


# ── what the caller knows ──


async def test_static_credentials_are_for_every_registry() -> None:
    store: CredentialStore = StaticCredentials("me", SECRET)
    assert isinstance(store, CredentialStore)
    assert await store.get("quay.io", "a") == await store.get("docker.io", "b/c") == user("me")


@pytest.mark.parametrize(
    ("registry", "repository", "expected"),
    [
        ("quay.io", "team/app", "app"),
        ("quay.io", "team/app/part", "app"),
        ("quay.io", "team", "quay"),
        ("quay.io", "", "quay"),
        ("quay.io:443", "team/app", None),
        ("docker.io", "library/alpine", "hub"),
        ("registry-1.docker.io", "library/alpine", "hub"),
        ("b.example", "a", "url"),
    ],
)
async def test_mapping_credentials_match_as_files_do(
    registry: str, repository: str, expected: str | None
) -> None:
    keys = {
        "quay.io": "quay",
        "quay.io/team/app": "app",
        "https://index.docker.io/v1/": "hub",
        "https://b.example": "url",
    }
    store: CredentialStore = MappingCredentials({key: user(name) for key, name in keys.items()})
    assert await store.get(registry, repository) == (user(expected) if expected else None)


def test_credentials_do_not_show_their_secrets() -> None:
    credentials = Credentials("me", SECRET, SECRET, SECRET)
    assert repr(credentials) == str(credentials) == "Credentials(username='me')"
    answer = credential_helper.HelperAnswer("me", SECRET)
    assert repr(answer) == "HelperAnswer(username='me')"
    place = _auth_files.Place("p", text=SECRET)
    assert SECRET not in repr(place)
