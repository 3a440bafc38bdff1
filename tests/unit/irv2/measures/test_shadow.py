"""What a server writes of its shadow is what is read of it."""

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition

from irv2.measures.shadow import MEANING, ShadowReport

REPORT = ShadowReport(
    model_id="a" * 64,
    shadow_id="b" * 64,
    artifact="model.int8-cpu.onnx",
    precision="int8",
    backend="onnxruntime-cpu",
    state="comparing",
    compared=3000,
    changed=12,
    repeated=7,
    dropped=9,
    limit_percent=0.75,
)


class Scraped(CollectorRegistry):
    """A registry that holds a report and nothing else."""

    def __init__(self, report: ShadowReport) -> None:
        super().__init__()
        self.collect = report.families


@pytest.mark.parametrize("report", [REPORT, replace(REPORT, compared=0, changed=0, state="off")])
def test_it_is_read_as_it_was_written(report):
    assert ShadowReport.read(generate_latest(Scraped(report)).decode()) == report


def test_scrapers_get_the_exact_limits_by_both_models():
    text = exposition.generate_latest(Scraped(REPORT)).decode()
    labels = f'{{model_id="{REPORT.model_id}",shadow_id="{REPORT.shadow_id}"}}'
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if labels in line)
    assert float(values[f"irv2_shadow_compared_total{labels}"]) == 3000
    upper = float(values[f"irv2_shadow_disagreement_upper_percent{labels}"])
    assert upper == REPORT.agreement.upper_percent > 0.4


def test_a_server_without_shadow_has_no_report():
    assert ShadowReport.read(generate_latest(CollectorRegistry()).decode()) is None


def test_a_report_of_another_version_is_not_guessed():
    text = generate_latest(Scraped(REPORT)).decode().replace("_dropped", "_left")
    with pytest.raises(ValueError, match="another version: 'irv2_shadow_dropped_total'"):
        ShadowReport.read(text)


def test_both_forms_say_that_it_is_not_accuracy():
    assert REPORT.to_text(0.75).endswith(MEANING)
    found = REPORT.to_json(0.5)
    assert (found["meaning"], found["limit_percent"]) == (MEANING, 0.5)
    assert (found["verdict"], REPORT.to_json(0.75)["verdict"]) == ("too_few_images", "passed")
