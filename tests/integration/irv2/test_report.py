"""`irv2 report` of a run, its bundle and its images as irv2-train and irv2-export left them."""

import re
import shutil
import subprocess
import sys

import pytest
from project import ROOT

BEFORE = ROOT / "tests" / "data" / "before_rooms"
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    sources = [BEFORE / "run", BEFORE / "bundle", "--data", BEFORE / "data"]
    command = [sys.executable, "-m", "irv2", "report", *sources, "-o", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    return out


def test_it_says_what_run_and_bundle_say(page):
    text = page.read_text()
    assert "which is best.pt of run run" in text
    for name in ("model.onnx", "model.int8-cpu.onnx", "model.int8-trt.onnx", "magenta"):
        assert name in text
    assert "data:image/jpeg" in text  # the checkpoint is wrong on some of these images
    assert "Rate: not measured for model.onnx" in text
    assert str(ROOT) not in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_browser_prints_it(page, tmp_path):
    """To several pages of A4 with text that can be searched."""
    pdf = tmp_path / "report.pdf"
    options = [f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={pdf}"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *options, page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    content = pdf.read_bytes()
    title = "Report: run · bundle".encode("utf-16-be").hex().upper().encode()
    assert title in content
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 4
    assert b"/ToUnicode" in content
    sizes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content)
    assert {(round(float(w)), round(float(h))) for w, h in sizes} == {(595, 842)}  # A4, in points
    if shutil.which("pdftotext"):
        read = subprocess.run(["pdftotext", pdf, "-"], check=True, capture_output=True, text=True)
        for heading in ("Parity gate", "Worst pictures", "Provenance", "Not in this report"):
            assert heading in read.stdout
