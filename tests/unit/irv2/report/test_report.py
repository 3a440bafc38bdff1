"""The whole page, of made-up results."""

from page_tags import Tags
from tiny_bundle import write_tiny_bundle

from irv2.report.report import ReportOptions, make_report
from irv2.report.sources import read_sources


def test_names_that_are_markup_stay_text(run, bundle, data):
    page = make_report(read_sources([run, bundle]), ReportOptions(data=data)).content
    found = Tags(page).found
    assert not {"script", "b", "i", "u", "em"} & {tag for tag, _ in found}
    assert not any(name.startswith("on") for _, attributes in found for name in attributes)
    assert b"&lt;script&gt;alert(1)" in page
    assert b"&lt;em&gt;passed&lt;/em&gt;" in page  # what the gate says, from parity.md


def test_everything_is_in_the_file(run, bundle, data):
    found = Tags(make_report(read_sources([run, bundle]), ReportOptions(data=data)).content).found
    links = [a[name] for _, a in found for name in ("src", "href") if name in a]
    assert links
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert {link.removeprefix("#") for link in links if link[0] == "#"} == set(ids)
    assert len(ids) == len(set(ids))


def test_the_same_input_gives_the_same_bytes(run, bundle, data):
    pages = {
        make_report(read_sources([run, bundle]), ReportOptions(data=data)).content for _ in range(2)
    }
    assert len(pages) == 1


def test_the_chain_leads_from_the_run_to_the_files(run, bundle):
    text = make_report(read_sources([run, bundle]), ReportOptions()).content.decode()
    assert "which is best.pt of run &lt;i&gt;run" in text
    alone = make_report(read_sources([bundle]), ReportOptions()).content.decode()
    assert "which none of this report's runs holds" in alone


def test_what_is_lacking_is_listed_and_nothing_is_made_up(run, bundle, tmp_path):
    unjudged = write_tiny_bundle(tmp_path / "new.bundle", verdict=None)
    report = make_report(read_sources([run, bundle, unjudged]), ReportOptions())
    assert report.lacking == [
        "b.bundle: Rate: not measured for model.onnx on onnxruntime-cpu 1.0 amx (irv2 verify "
        "measures it).",
        "b.bundle: Pictures: left out, as the report was made without --data.",
        "new.bundle: Training curves: no run here holds its weights.",
        "new.bundle: model.onnx: not verified, nothing could run it yet.",
        "new.bundle: Rate: not measured, no engine has run yet.",
        "new.bundle: Classes, pictures and flips: not recorded, no reference.npz.",
        "measured: Server: not measured (irv2 bench serve BUNDLE --json > serve.json, then "
        "--bench serve.json).",
    ]
    assert "321.5" in report.content.decode()
