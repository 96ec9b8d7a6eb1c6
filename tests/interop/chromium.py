"""Chromium without a window, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

START_LIMIT = 60.0  # seconds
STOP_LIMIT = 60.0
TIME_LIMIT = 200.0  # seconds for a download


class Chromium:
    """A browser that runs."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._sent = 0

    async def download(self, url: str, folder: Path) -> Path:
        """Open a page that is a download; return the file when it is complete.

        Raises:
            AssertionError: The browser gave up.
        """
        behavior = {"behavior": "allow", "downloadPath": str(folder), "eventsEnabled": True}
        await self._send("Browser.setDownloadBehavior", **behavior)
        await self._send("Target.createTarget", url=url)
        name = ""
        async with asyncio.timeout(TIME_LIMIT):
            while True:
                message = await self._socket.receive_json()
                assert "error" not in message, message
                said = message.get("params", {})
                if message.get("method") == "Browser.downloadWillBegin":
                    name = said["suggestedFilename"]
                if message.get("method") == "Browser.downloadProgress" and said["state"] != "inProgress":
                    assert said["state"] == "completed", said
                    return folder / name

    async def close(self) -> None:
        """End the browser."""
        await self._send("Browser.close")

    async def _send(self, method: str, **parameters: Any) -> None:
        self._sent += 1
        await self._socket.send_json({"id": self._sent, "method": method, "params": parameters})


@asynccontextmanager
async def running_chromium() -> AsyncGenerator[Chromium, None]:
    """Run it with a new profile, until the block is left."""
    # Not pytest's folder: its name is too long for a socket's.
    with tempfile.TemporaryDirectory(prefix="chromium-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        process = await _start(folder)
        reading = None
        try:
            async with asyncio.timeout(START_LIMIT):
                address = await _address(process)
            reading = asyncio.create_task(_read_on(process))
            async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
                chromium = Chromium(socket)
                yield chromium
                await chromium.close()
                async with asyncio.timeout(STOP_LIMIT):
                    await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            if reading is not None:
                await reading


async def _start(folder: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        "chromium",
        "--headless",
        "--no-sandbox",  # which is not for root
        "--disable-gpu",
        "--disable-dev-shm-usage",  # small in containers
        "--no-first-run",
        "--no-proxy-server",
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={folder}/profile",
        "--remote-debugging-port=0",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": folder},
        start_new_session=True,  # a group of its own, so that its children can be ended with it
    )


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr
    said = []
    while line := (await process.stderr.readline()).decode():
        if line.startswith("DevTools listening on "):
            return line.split()[-1]
        said.append(line)
    raise AssertionError(f"chromium has ended: {''.join(said)}")


async def _read_on(process: asyncio.subprocess.Process) -> None:
    assert process.stderr
    while await process.stderr.read(1 << 16):
        pass  # a full pipe would stop it
