"""Drive headless Chromium through the pipe of its DevTools protocol, without driver, port or library.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import time

import numpy as np
from PIL import Image

TIMEOUT = 20
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # the sandbox needs privileges that containers lack
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--no-first-run",
)
KEYS = {
    "Enter": (13, "\r"),
    "Tab": (9, ""),
    "Escape": (27, ""),
    "Backspace": (8, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
    " ": (32, " "),
}


def find_chromium():
    """Return the path of the program, or None if it is not installed."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Chromium:
    """A browser with its own profile in ``folder``; it exits when its pipe is closed."""

    def __init__(self, program, folder):
        # The browser reads from descriptor 3 and writes to 4, so the pipes here must not use those numbers.
        (commands, self._to), (self._from, answers) = (
            map(self._move_away, os.pipe()),
            map(self._move_away, os.pipe()),
        )
        redirect = f'exec "$@" 3<&{commands} 4>&{answers}'
        arguments = [program, *SWITCHES, f"--user-data-dir={folder}", "about:blank"]
        with (folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                ["bash", "-c", redirect, "chromium", *arguments], pass_fds=(commands, answers), stderr=stderr
            )
        os.close(commands)
        os.close(answers)
        self._received = b""
        self._number = 0
        self._pages = {}

    @staticmethod
    def _move_away(descriptor):
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
        os.close(descriptor)
        return moved

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._to)
        os.close(self._from)
        try:
            self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method, session=None, **parameters):
        """Run a command, of a page if ``session`` is given; store events that arrive before the result."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._to, content) :]
        deadline = time.monotonic() + TIMEOUT
        while (answer := self._receive(deadline, method)).get("id") != number:
            page = self._pages.get(answer.get("sessionId"))
            if page:
                page.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _receive(self, deadline, method):
        while b"\0" not in self._received:
            if not select.select([self._from], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError(f"{method}: no answer after {TIMEOUT} s")
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError(f"{method}: the browser has ended")
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def open(self, path, *, width=1000, height=700, dark=False, still=False, scripts=True):
        """Open a file in a new page and wait until it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        features = {"prefers-color-scheme": "dark" if dark else "light"}
        if still:
            features["prefers-reduced-motion"] = "reduce"
        page.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )
        page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        page.call("Page.navigate", url=path.as_uri())
        page.wait_for(lambda: any(event["method"] == "Page.loadEventFired" for event in page.events))
        return page


class Page:
    """A page of the browser.

    Attributes:
        events: everything that the page has reported, in order.
    """

    def __init__(self, browser, session):
        self._browser, self._session = browser, session
        self.events = []

    def call(self, method, **parameters):
        return self._browser.call(method, self._session, **parameters)

    def close(self):
        self.call("Page.close")

    def wait_for_frame(self):
        """Wait until everything requested so far has been drawn."""
        self.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
        )

    def resize(self, width, height):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def evaluate(self, expression):
        """Evaluate a JavaScript expression."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']['exception']['description']}")
        return answer["result"].get("value")

    def wait_for(self, condition):
        """Wait for a true result of a function or of a JavaScript expression, and return it."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            answer = self.evaluate(condition) if isinstance(condition, str) else condition()
            if answer:
                return answer
            self.call("Runtime.evaluate", expression="0")  # receives events
            time.sleep(0.02)
        raise TimeoutError(f"not within {TIMEOUT} s: {condition}")

    def box(self, selector):
        """Scroll to an element and return its left, top, width and height in the window."""
        return self.evaluate(
            f"(() => {{ const it = document.querySelector({json.dumps(selector)});"
            " it.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const box = it.getBoundingClientRect(); return [box.x, box.y, box.width, box.height]; })()"
        )

    def click(self, selector):
        left, top, width, height = self.box(selector)
        where = {"x": left + width / 2, "y": top + height / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **where)

    def press(self, *keys, modifiers=0):
        """Press keys one after the other: values of KeyboardEvent.key, or single characters."""
        for key in keys:
            code, text = KEYS.get(key, (ord(key.upper()) if len(key) == 1 and key.isalnum() else 0, key))
            common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, selector=None, path=None):
        """Capture the window or an element as (H, W, 3) uint8; also write it as PNG to ``path``, if given."""
        clip = {}
        if selector:
            left, top, width, height = self.box(selector)
            x, y = self.evaluate("[scrollX, scrollY]")
            clip = {"clip": {"x": left + x, "y": top + y, "width": width, "height": height, "scale": 1}}
        content = base64.b64decode(self.call("Page.captureScreenshot", format="png", **clip)["data"])
        if path:
            path.write_bytes(content)
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))

    @property
    def log(self):
        """Console output, exceptions, and log entries of the browser."""
        self.call("Runtime.evaluate", expression="0")
        kinds = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        return [event["params"] for event in self.events if event["method"] in kinds]

    @property
    def requests(self):
        """The requested URLs, except data URIs."""
        self.call("Runtime.evaluate", expression="0")
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        addresses = [event["params"]["request"]["url"] for event in sent]
        return [address for address in addresses if not address.startswith("data:")]


def texts(page, selector):
    return page.evaluate(f"[...document.querySelectorAll({selector!r})].map((it) => it.textContent)")


TEXT_COLOURS = """
(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const found = [];
  for (const it of document.querySelectorAll("body *")) {
    const own = [...it.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !it.checkVisibility() || it.closest("script, style, :disabled")) continue;
    let ground = it;
    while (parse(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
    const style = getComputedStyle(it);
    const ink = it instanceof SVGElement ? style.fill : style.color;
    const paper = getComputedStyle(ground).backgroundColor;
    found.push([it.tagName + "." + it.getAttribute("class"), parse(ink), parse(paper)]);
  }
  return found;
})()
"""


def contrast(first, second):
    """Contrast ratio of two sRGB colours, as defined by WCAG 2."""

    def luminance(colour):
        channels = np.asarray(colour[:3]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)
