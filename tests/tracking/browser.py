"""A headless Chromium, driven by its DevTools protocol."""

import asyncio
import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request

import aiohttp

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 120  # seconds


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_until_served(port):
    until = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return
        assert time.monotonic() < until, f"nothing answers at port {port}"
        time.sleep(0.2)


class Page:
    """One tab."""

    def __init__(self, socket):
        self._socket, self._count = socket, 0

    async def do(self, method, **params):
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": params})
        while (answer := await self._socket.receive_json(timeout=PATIENCE)).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    async def value(self, script):
        """What a JavaScript expression gives."""
        found = await self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    async def until(self, script):
        """The value of an expression, once it is true."""
        end = time.monotonic() + PATIENCE
        while not (value := await self.value(script)):
            if time.monotonic() > end:
                text = await self.value("document.body.innerText")
                raise AssertionError(f"never true: {script}\n{text}")
            await asyncio.sleep(0.5)
        return value

    async def show(self, address, *words):
        """Open an address, and wait until all the words stand on the page; returns its text."""
        await self.do("Page.navigate", url="about:blank")  # else another fragment of one page is no navigation
        await self.do("Page.navigate", url=address)
        there = "(text => words.every(word => text.includes(word)) && text)(document.body?.innerText ?? '')"
        return await self.until(there.replace("words", json.dumps(words)))

    async def framed(self, word):
        """The HTML in the page's frame, once the word stands in it. The frame is a sandbox, into which nobody looks."""
        text = "await (await fetch(document.querySelector('iframe[src]')?.src ?? 'data:,')).text()"
        return await self.until(f"(async () => (text => text.includes({word!r}) && text)({text}))()")

    async def save(self, path):
        """A screenshot."""
        picture = await self.do("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))


@contextlib.asynccontextmanager
async def browse(profile, width=1600, height=1000):
    """A page of a new browser, whose files lie in the folder `profile`."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
    flags += ["--remote-debugging-port=0", f"--window-size={width},{height}", "about:blank"]
    browser = subprocess.Popen([PROGRAM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in browser.stderr if line.startswith("DevTools listening on "))
        port = line.rpartition(":")[2].partition("/")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            (address,) = [each["webSocketDebuggerUrl"] for each in json.load(answer) if each["type"] == "page"]
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            yield Page(socket)
    finally:
        browser.terminate()
        browser.communicate(timeout=PATIENCE)
