"""The pages that are made from the sources, in docs/generated, and llms.txt of all pages."""

import itertools
import re
import shutil
from pathlib import Path

import click
import notebook
import troubleshooting
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from sphinx.application import Sphinx

from irv2.cli.main import PROGRAMS
from irv2.cli.program import Entry
from irv2.serve.operations.metrics import Metrics

ROOT = Path(__file__).parents[2]
COPIED = ("CONTRIBUTING.md", "CHANGELOG.md", "DECISIONS.md", "SECURITY.md")  # from beside docs/
OPTION = ".. option:: "
MARKUP = re.compile(r"([*`|_\\])")


def write_pages(docs: Path) -> None:
    """Write docs/generated anew."""
    pages = {f"irv2-{name}.md": _program(name, entry) for name, entry in PROGRAMS.items()}
    pages |= {name: _copied(name) for name in COPIED}
    pages["programs.md"] = _programs()
    pages["metrics.md"] = _metrics()
    pages["messages.md"] = troubleshooting.page()
    pages["notebook.md"] = _notebook(docs / "notebook.ipynb")
    folder = docs / "generated"
    shutil.rmtree(folder, ignore_errors=True)  # there is none yet
    folder.mkdir()
    for name, text in pages.items():
        (folder / name).write_text(text)


def describe(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Say below a program's description what to install for it."""
    lines[:] = [_escaped(line) for line in lines]
    name = context.command_path.removeprefix("irv2 ")
    if name in PROGRAMS and PROGRAMS[name].extra:
        lines += [f'It needs ``pip install "irv2[{PROGRAMS[name].extra}]"``.', ""]


def describe_options(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Replace the text of each option by that of `--help`, with default and range.

    sphinx-click makes texts of its own, without either. Its choices stay: in help they stand before
    the text.
    """
    context.show_default = context.command.context_settings.get("show_default")
    starts = [i for i, line in enumerate(lines) if line.startswith(OPTION)]
    described = []
    for start, end in itertools.pairwise([*starts, len(lines)]):
        name = lines[start].removeprefix(OPTION).split()[0].rstrip(",")
        [option] = [each for each in context.command.params if name in each.opts]
        assert isinstance(option, click.Option)
        record = option.get_help_record(context)
        assert record  # none is hidden
        choices = [line for line in lines[start:end] if line.lstrip().startswith(":options:")]
        described += [lines[start], "", f"    {_escaped(record[1])}", "", *choices, ""]
    lines[:] = described


def write_llms_txt(app: Sphinx, error: Exception | None) -> None:
    """List all pages with their first sentence (llmstxt.org), in the order of the contents."""
    if error or app.builder.format != "html":
        return
    lines = ["# IRv2", "", f"> {_first_sentence(ROOT / 'README.md')}", ""]
    for caption, names in _contents(Path(app.srcdir) / "index.md"):
        lines += [f"## {caption}", ""]
        for name in names:
            path = Path(app.srcdir) / f"{name}.md"
            title = app.env.titles[name].astext()
            url = app.builder.get_target_uri(name)
            lines.append(f"- [{title}]({url}): {_first_sentence(path)}")
        lines.append("")
    (Path(app.outdir) / "llms.txt").write_text("\n".join(lines))


def _escaped(line: str) -> str:
    """Return a line of help as reStructuredText, as which sphinx-click reads it."""
    *pairs, rest = re.split(r"`([^`]+)`", line)
    marked = (f"``{x}``" if i % 2 else MARKUP.sub(r"\\\1", x) for i, x in enumerate(pairs))
    return "".join(marked) + MARKUP.sub(r"\\\1", rest)


def _program(name: str, entry: Entry) -> str:
    """The page of one program, and of the programs below it."""
    directive = f".. click:: {entry.target}\n   :prog: irv2 {name}\n   :nested: full"
    return f"```{{eval-rst}}\n{directive}\n```\n"


def _programs() -> str:
    lines = [
        f"| [irv2 {name}](irv2-{name}.md) | {entry.summary} |" for name, entry in PROGRAMS.items()
    ]
    pages = "\n".join(f"irv2-{name}" for name in PROGRAMS)
    return (
        "# Programs\n\nWhat `--help` says of each, in the order of the pipeline. `irv2-train`, "
        "`irv2-export`, `irv2-serve` and `irv2-classify` are the same programs under names of "
        "their own.\n\n| program | does |\n|---|---|\n" + "\n".join(lines) + "\n\n"
        f"```{{toctree}}\n:hidden:\n{pages}\n```\n"
    )


def _metrics() -> str:
    """The table of all metrics, from those that a server shows."""
    metrics = Metrics()
    metrics.watch(lambda: 0, lambda: 0, lambda: 0, lambda: True, lambda: 0)
    families = text_string_to_metric_families(metrics.text().decode())
    shown = [family for family in families if not family.name.endswith("_created")]
    rows = "\n".join(map(_row, shown))
    return (
        "# Metrics\n\nWhat `/metrics` shows on the port of `--http`; [serving](../serving.md) says "
        "what to watch.\n\n| metric | kind | meaning |\n|---|---|---|\n" + rows + "\n"
    )


def _row(family: Metric) -> str:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return f"| `{name}` | {family.type} | {family.documentation} |"


def _copied(name: str) -> str:
    """A page that lies beside docs/, with its links as they are from docs/generated."""
    return re.sub(r"\]\(docs/", "](../", (ROOT / name).read_text())


def _notebook(path: Path) -> str:
    """The page of a notebook, with its links as they are from docs/generated."""
    text = re.sub(r"\]\((?=[\w-]+\.md)", "](../", notebook.page(notebook.read(path)))
    return f"{text}\n{{download}}`The notebook itself <../{path.name}>`\n"


def _contents(index: Path) -> list[tuple[str, list[str]]]:
    """Return the captions of the index with the pages below each."""
    trees = re.findall(r"```\{toctree\}\n:caption: (.+)\n((?:.|\n)*?)```", index.read_text())
    return [
        (caption, [line for line in body.splitlines() if line and not line.startswith(":")])
        for caption, body in trees
    ]


def _first_sentence(page: Path) -> str:
    """Return the first sentence of a page's first paragraph, as plain text."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    prose = next(each for each in re.split(r"\n\n+", text) if re.match(r"[A-Z`*]", each))
    plain = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", prose.replace("\n", " "))
    return re.split(r"(?<=[.?]) (?=[A-Z`])", plain)[0].rstrip(":")
