"""A headless Chromium, spoken to over its DevTools protocol."""

import base64
import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from contextlib import contextmanager

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tab:
    """A page of a headless Chromium, spoken to over its DevTools protocol."""

    def __init__(self, url):
        host, _, path = url.removeprefix("ws://").partition("/")
        name, _, port = host.partition(":")
        self.socket = socket.create_connection((name, int(port)), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self.socket.sendall(request.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(1)
        digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        assert base64.b64encode(digest) in answer
        self.count, self.events = 0, []

    def __call__(self, method, **parameters):
        self.count += 1
        text = json.dumps({"id": self.count, "method": method, "params": parameters}).encode()
        mask = os.urandom(4)
        long = len(text) > 65535
        size = bytes([0x80 | (127 if long else 126)]) + struct.pack(">Q" if long else ">H", len(text))
        masked = bytes(byte ^ mask[k % 4] for k, byte in enumerate(text))
        self.socket.sendall(b"\x81" + size + mask + masked)
        while True:
            message = self._read()
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def evaluate(self, expression):
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def _read(self):
        text = b""
        while True:
            first, second = self._exactly(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(self._exactly(2 if size == 126 else 8), "big")
            text += self._exactly(size)
            if first & 0x80:
                return json.loads(text)

    def _exactly(self, count):
        data = b""
        while len(data) < count:
            data += self.socket.recv(count - len(data))
        return data


@contextmanager
def chromium(folder):
    """A tab of a browser that can resolve no host name."""
    process = subprocess.Popen(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = folder / "profile" / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (port.exists() and port.read_text().strip()):
            assert time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.1)
        number = port.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/json/list") as answer:
            (page,) = [page for page in json.load(answer) if page["type"] == "page"]
        tab = Tab(page["webSocketDebuggerUrl"])
        yield tab
        tab.socket.close()
    finally:
        process.terminate()
        process.wait(20)


def show(tab, url, *, width=1280, scheme="light", media=""):
    """Load a page, a path or an address; what it requested and said is in ``tab.events``."""
    tab("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    tab("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.events.clear()
    tab("Page.navigate", url=url if isinstance(url, str) else url.as_uri())
    deadline = time.monotonic() + 30
    while tab.evaluate("document.readyState") != "complete" or tab.evaluate("location.href") == "about:blank":
        assert time.monotonic() < deadline, "the page did not load"
        time.sleep(0.05)


# What is wrong with the texts of a page as it is shown, and how far down and long it is.
TEXTS = """
(() => {
  const boxes = [], small = [], cut = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility() || parent.closest('title, desc')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const svg = parent.closest('svg.chart');
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    if (parseFloat(getComputedStyle(parent).fontSize) * scale < 9) small.push(node.data.trim());
    for (const box of range.getClientRects()) {
      if (box.right < 0 || box.width < 1) continue;
      const turned = parent.getAttribute('transform');
      if (!turned) boxes.push([box, node.data.trim()]);
      if (box.right > innerWidth + 1 && !parent.closest('.scroll, pre')) cut.push(node.data.trim());
    }
    for (let up = parent; up && up !== document.body; up = up.parentElement)
      if (getComputedStyle(up).overflowX === 'hidden' && up.scrollWidth > up.clientWidth + 1)
        cut.push(node.data.trim());
  }
  const overlap = [];
  for (let i = 0; i < boxes.length; i++)
    for (let k = i + 1; k < boxes.length && k < i + 400; k++) {
      const [a, s] = boxes[i], [b, t] = boxes[k];
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 2 && tall > 0.35 * Math.min(a.height, b.height)) overlap.push(s + ' | ' + t);
    }
  const row = document.querySelector('table.verdicts tbody tr, table.tracks tbody tr');
  return {
    overlap: [...new Set(overlap)], cut: [...new Set(cut)], small: [...new Set(small)],
    first: row ? Math.round(row.getBoundingClientRect().bottom) : null,
    long: document.documentElement.scrollHeight,
    sideways: Math.max(0, document.documentElement.scrollWidth - innerWidth),
  };
})()
"""
