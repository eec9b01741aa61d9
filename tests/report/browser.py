"""A report in a real browser: Debian's Chromium, headless, without network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--virtual-time-budget=4000",
)

# The report stands in a frame as wide as the screen that is tried: a window has a smallest width of its own.
_WRAPPER = """<!doctype html><meta charset="utf-8">
<iframe id="frame" style="border:0;width:WIDTHpx;height:900px" srcdoc="PAGE"></iframe>
<pre id="found"></pre><script>
const errors = [];
const frame = document.getElementById("frame");
function look() {
  const doc = frame.contentDocument, view = frame.contentWindow;
  const box = (one) => one.getBoundingClientRect();
  const found = { errors: view.recordedErrors, width: doc.documentElement.scrollWidth, clicks: {} };
  found.pieces = [...doc.querySelectorAll("svg .piece")].map((one) => one.dataset.kind);
  found.cells = doc.querySelectorAll(".ribbon .cell").length;
  const rects = [...doc.querySelectorAll("svg .piece rect, svg .cutbox rect")];
  found.drawn = rects.every((one) => box(one).height > 8);
  const frame_of = (text) => box(text.parentNode.querySelector("rect"));
  found.outside = [...doc.querySelectorAll("svg .piece text, svg .cutbox text")].filter((text) =>
    box(text).right > frame_of(text).right || box(text).left < frame_of(text).left).length;
  const shown = () => [...doc.querySelectorAll("article.kind:not([hidden])")].map((one) => one.dataset.kind);
  found.first = shown();
  for (const one of [...doc.querySelectorAll("svg .piece")].reverse()) {
    one.scrollIntoView({ block: "center" });
    const at = box(one);
    const hit = doc.elementFromPoint(at.left + at.width / 2, at.top + at.height / 2);
    hit.dispatchEvent(new view.MouseEvent("click", { bubbles: true }));
    const article = doc.querySelector("article.kind:not([hidden])");
    found.clicks[one.dataset.kind] = { shown: shown(), text: article.innerText, height: box(article).height };
  }
  document.getElementById("found").textContent = JSON.stringify(found);
}
frame.addEventListener("load", () => setTimeout(look, 50));
</script>"""

_RECORDER = """<script>window.recordedErrors = [];
const record = (event) => recordedErrors.push(String(event.message || event.target.src));
window.addEventListener("error", record, true);
for (const name of ["error", "warn"]) console[name] = (...all) => recordedErrors.push(all.join(" "));
</script>"""


def looked_at(page: str, width: int, folder: Path) -> dict[str, Any]:
    """What a person would find on ``page`` on a screen of that width, each piece clicked once."""
    page = page.replace("<head>", f"<head>{_RECORDER}", 1)
    wrapper = _WRAPPER.replace("WIDTH", str(width)).replace("PAGE", html.escape(page, quote=True))
    file = folder / f"wrapper_{width}.html"
    file.write_text(wrapper, encoding="utf-8")
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    assert found[1], done.stderr[-2000:]
    return dict(json.loads(html.unescape(found[1])))
