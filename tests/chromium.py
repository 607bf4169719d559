"""A real headless Chromium, steered over its DevTools protocol through a pair of pipes."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.services import wait_for

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
         "--disable-extensions", "--no-default-browser-check", "--hide-scrollbars", "--force-device-scale-factor=1",
         "--remote-debugging-pipe")
ANSWER = 30.0  # seconds that a command is given


def chromium_binary() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Chromium:
    """One browser process, with an empty profile of its own."""

    def __init__(self, binary: str) -> None:
        self.profile = tempfile.mkdtemp(prefix="callsheet-chromium-")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()

        def pipes() -> None:  # it reads commands from 3 and writes answers to 4
            a, b = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen([binary, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        close_fds=False, start_new_session=True,
                                        preexec_fn=pipes)  # noqa: PLW1509 - four system calls, no locks
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """What a command of the protocol answers."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + ANSWER
        while True:
            answer = self._next(end, method)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self, end: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"Chromium did not answer {what} within {ANSWER} s"
            more = os.read(self._in, 1 << 20)
            assert more, f"Chromium ended with {self.process.poll()}"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def page(self) -> "Page":
        """A new page, with cookies and passwords that no other has."""
        context = self.ask("Target.createBrowserContext")["browserContextId"]
        target = self.ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        page = Page(self, self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        page.ask("Page.enable")
        page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        page.size(1280, 800)
        return page

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self.profile, ignore_errors=True)


class Page:
    """One page, as a user sees and clicks it."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self.browser, self.session = browser, session

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.ask(method, self.session, **params)

    def size(self, width: int, height: int) -> None:
        """Make it so large, in pixels."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, url: str) -> int:
        """Go there and wait until all of it is there. Gives the status."""
        failed = self.ask("Page.navigate", url=url).get("errorText")
        if failed and "ERR_INVALID_AUTH_CREDENTIALS" in failed:
            return 401
        assert not failed, (url, failed)
        wait_for(lambda: self.js("location.href !== 'about:blank' && document.readyState") == "complete", what=url)
        return int(self.js("performance.getEntriesByType('navigation')[0].responseStatus"))

    def js(self, expression: str) -> Any:
        """What an expression gives there, once it is settled."""
        told = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def text(self, selector: str = "body") -> str:
        """What is to be read in the first element that fits; "" if none does."""
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText || ''"))

    def wait_text(self, *words: str, selector: str = "body", timeout: float = 20.0) -> str:
        """Wait until all of these words are to be read there."""
        def there() -> str:
            text = self.text(selector)
            return text if all(word in text for word in words) else ""

        return wait_for(there, timeout, lambda: f"{words} in {selector}: {self.text(selector)[-1500:]}")

    def click(self, selector: str, within: str = "document") -> None:
        """Click in the middle of the first element that fits, once it can be seen, as a mouse does."""
        find = f"""(() => {{
            const found = {within}.querySelector({json.dumps(selector)});
            if (!found) return null;
            found.scrollIntoView({{block: 'center', behavior: 'instant'}});
            const box = found.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
            const top = document.elementFromPoint(x, y);
            return box.width && top && (found.contains(top) || top.contains(found)) ? [x, y] : null;
        }})()"""

        def at_rest() -> Any:
            place = self.js(find)
            return place if place and self.js(find) == place else None

        x, y = wait_for(at_rest, what=f"{selector} to be seen")
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def fill(self, selector: str, text: str) -> None:
        """Type into a field, in place of what is there."""
        self.click(selector)
        self.js(f"document.querySelector({json.dumps(selector)}).select()")
        self.ask("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """A PNG of what is to be seen."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def chromium(binary: str) -> Iterator[Chromium]:
    """A browser that answers."""
    browser = Chromium(binary)
    try:
        browser.ask("Browser.getVersion")
        yield browser
    finally:
        browser.close()
