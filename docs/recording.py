"""Record the demo: python docs/recording.py [CAST]

Runs docs/demo.sh in a terminal, in an empty folder so that it trains. Writes build/demo.cast, which
`asciinema play` shows, and from that docs/demo.svg, for README.md. A CAST is drawn without a run.
"""

import codecs
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
CAST = HERE.parent / "build" / "demo.cast"
COLUMNS, ROWS = 152, 30  # the gate's table fits
CHARACTER, LINE = 7.8, 18  # pixels, of a font of 13
IDLE_S = 0.6  # the longest pause of the picture
READ_S = 2.0  # but so long before the next command, and three times that at the end
BOLD = re.compile("\x1b\\[1m(.*?)\x1b\\[0m")
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>What make demo prints, with shorter pauses</title>
<style>
text {{ font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }}
text {{ fill: #d4d9df; white-space: pre }}
.command {{ font-weight: bold; fill: #fff }}
#lines {{ transform: translateY({end}px); animation: scroll {seconds}s step-end infinite }}
@media (prefers-reduced-motion: reduce) {{ #lines {{ animation: none }} }}
@keyframes scroll {{ {steps} }}
</style>
<rect width="100%" height="100%" rx="8" fill="#161b22"/>
<svg x="{edge}" y="{edge}" width="{inner_width}" height="{inner_height}"><g id="lines">
{lines}
</g></svg>
</svg>
"""


def record(command: list[str], cast: Path) -> None:
    """Run `command` in a terminal and write what it draws to `cast` (asciinema, version 2)."""
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "idle_time_limit": 1}
    events = [[round(at_s, 2), "o", text] for at_s, text in drawn_by(command)]
    cast.parent.mkdir(parents=True, exist_ok=True)
    cast.write_text("".join(f"{json.dumps(line)}\n" for line in [header, *events]))


def drawn_by(command: list[str]) -> Iterator[tuple[float, str]]:
    """Yield what `command` draws as it comes, with the seconds since its start. It must succeed."""
    start = time.monotonic()
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
    decoder = codecs.getincrementaldecoder("utf-8")()
    with tempfile.TemporaryDirectory() as folder:
        # A cache of its own, so that no user's path is shown; bars are drawn once in a second.
        environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache", "TQDM_MININTERVAL": "1"}
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        ) as process:
            os.close(theirs)
            while piece := read(ours):
                yield time.monotonic() - start, decoder.decode(piece)
    os.close(ours)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # what Linux says when the other end was closed
        return b""


def lines_of(cast: Path) -> Iterator[tuple[float, str]]:
    """Yield each line as it was when the next one began, and when that was."""
    line = ""
    for event in cast.read_text().splitlines()[1:]:
        at_s, _, text = json.loads(event)
        *complete, rest = text.split("\n")
        for part in complete:
            yield at_s, overwritten(line + part)
            line = ""
        line += rest
    if line:
        yield at_s, overwritten(line)


def overwritten(line: str) -> str:
    """Return what is seen of a line whose carriage returns went back to its start."""
    seen = ""
    for part in line.split("\r"):
        seen = part + seen[len(part) :]
    return seen.rstrip()


def picture(lines: list[tuple[float, str]]) -> str:
    """Draw the lines below each other, and move them up through a window as they came."""
    times_s = [at_s for at_s, _ in lines]
    gaps = zip(times_s, times_s[1:], lines[1:], strict=False)
    pauses = [READ_S if BOLD.match(line) else min(b - a, IDLE_S) for a, b, (_, line) in gaps]
    ends_s = list(accumulate(pauses, initial=0.0))
    total_s = ends_s[-1] + 3 * READ_S
    window = (ROWS * LINE, round(COLUMNS * CHARACTER))
    moved = [(at_s, window[0] - i * LINE) for i, at_s in enumerate(ends_s, 1)]
    latest = {f"{100 * at_s / total_s:.2f}%": place for at_s, place in moved}
    return SVG.format(
        width=window[1] + 2 * LINE,
        height=window[0] + 2 * LINE,
        inner_width=window[1],
        inner_height=window[0],
        edge=LINE,
        end=moved[-1][1],
        seconds=round(total_s, 1),
        steps=" ".join(f"{at} {{ transform: translateY({y}px) }}" for at, y in latest.items()),
        lines="\n".join(drawn(i, line) for i, (_, line) in enumerate(lines) if line),
    )


def drawn(row: int, line: str) -> str:
    """Return one line as SVG; its length is stated, so that columns meet in every font."""
    kind = ' class="command"' if BOLD.search(line) else ""
    seen = BOLD.sub(r"\1", line)[:COLUMNS]
    place = f'y="{row * LINE + 13}" textLength="{len(seen) * CHARACTER:.1f}"'
    return f"<text {place}{kind}>{escape(seen)}</text>"


def main(*casts: str) -> None:
    """Record unless there is a cast, and draw."""
    cast = Path(*casts) if casts else CAST
    if not casts:
        record(["bash", str(HERE / "demo.sh")], cast)
    (HERE / "demo.svg").write_text(picture(list(lines_of(cast))))


if __name__ == "__main__":
    main(*sys.argv[1:])
