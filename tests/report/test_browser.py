"""The pages in a real browser: nothing sticks out at any width; a report prints on two pages."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_cases import kinds

from hwprune.report import render
from hwprune.report.comparison import compare
from hwprune.report.record import from_mapping

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# The page in frames of three widths; what each says of itself becomes this page's text.
FRAMES = """<!doctype html><body><pre id=said></pre><script>
const widths = [360, 768, 1440];
const names = ["trained", "untrained", "dense", "firmware", "sweep"];
let left = widths.length * names.length;
for (const name of names) for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style.width = width + "px"; frame.style.height = "800px"; frame.style.border = "0";
  frame.onload = () => {
    const page = frame.contentDocument;
    page.querySelectorAll("details").forEach(each => each.open = true);
    const out = [...page.querySelectorAll("main *")].filter(each => {
      const box = each.getBoundingClientRect();
      const hidden = getComputedStyle(each).position == "absolute";
      return box.width > 1 && !hidden && box.right > width + 1;
    }).map(each => each.tagName);
    document.getElementById("said").append(
      [name, width, page.documentElement.scrollWidth, [...new Set(out)].join(","),
       getComputedStyle(page.body).backgroundColor].join(":") + ";");
    if (!--left) document.title = "done";
  };
  frame.src = name + ".html"; document.body.append(frame);
}
</script>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]


def chromium(*arguments: str) -> str:
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--allow-file-access-from-files", "--virtual-time-budget=10000", *arguments,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def pages(sample_record: dict[str, Any]) -> dict[str, str]:
    """Return reports of every kind with long names, and runs beside each other as in a sweep."""
    long = "a_very_long_name_of_a_layer." * 6
    sample_record["result"]["layers"][0]["name"] = long
    sample_record["notes"] += [long]
    records = {kind: from_mapping(each) for kind, each in kinds(sample_record).items()}
    runs = [("a" * 60, records["trained"]), *records.items()]
    sweep = render.comparison_html(compare(runs), "Sweep of 5 runs", [long])
    return {**{kind: render.html(each) for kind, each in records.items()}, "sweep": sweep}


NAMES = ["trained", "untrained", "dense", "firmware", "sweep"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(tmp_path: Path, sample_record: dict[str, Any], scheme: str) -> None:
    for name, text in pages(sample_record).items():
        (tmp_path / f"{name}.html").write_text(text)
    (tmp_path / "frames.html").write_text(FRAMES)
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    shown = chromium(*dark, "--dump-dom", f"file://{tmp_path}/frames.html")
    found = re.findall(r"(\w+):(\d+):(\d+):([A-Za-z,]*):([^;]*);", shown)
    assert {(name, width) for name, width, *_ in found} == {
        (name, width) for name in NAMES for width in ("360", "768", "1440")
    }
    assert [(name, width, out) for name, width, _, out, _ in found if out] == []
    assert [(n, width) for n, width, scroll, *_ in found if int(scroll) > int(width)] == []
    ground = "rgb(20, 23, 28)" if scheme == "dark" else "rgb(246, 247, 249)"
    assert {colour for *_, colour in found} == {ground}


@pytest.mark.parametrize("name", ["trained", "firmware"])
def test_a_report_prints_on_two_pages(
    tmp_path: Path, sample_record: dict[str, Any], name: str
) -> None:
    (tmp_path / "page.html").write_text(pages(sample_record)[name])
    target = tmp_path / "page.pdf"
    chromium(f"--print-to-pdf={target}", "--no-pdf-header-footer", f"file://{tmp_path}/page.html")
    assert len(re.findall(rb"/Type\s*/Page[^s]", target.read_bytes())) <= 2


def test_colours_have_the_contrast_of_wcag_aa() -> None:
    """4.5 to 1 for text on what it stands on, in both schemes."""
    template = Path(render.__file__).parent / "templates" / "style.html.j2"
    schemes = re.findall(r":root \{(.*?)\}", template.read_text(), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", scheme))
        for ink in ("ink", "faint", "good", "bad"):
            for ground in ("ground", "card", "track") if ink in ("ink", "faint") else ("card",):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(first: str, second: str) -> float:
    """Return the ratio of WCAG 2.1 of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)
