"""The metrics in the formats that scrapers ask for."""

import sys

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from irv2.serve.operations.metrics import Metrics, ModelMetrics, Sums

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def metrics():
    metrics = Metrics()
    metrics.watch(lambda: 0, lambda: 0, lambda: 2, lambda: True, lambda: 7)
    return metrics


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", plain),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", plain),
        (f"{OPENMETRICS},text/plain;q=0.5", OPENMETRICS, openmetrics),
        ("application/openmetrics-text; version=x", "text/plain; version=0.0.4", plain),
    ],
)
def test_the_accepted_format_is_sent(metrics, accept, content_type, parse):
    sent_type, body = metrics.exposition(accept)
    assert sent_type.startswith(content_type)
    values = {
        sample.name: sample.value
        for family in parse(body.decode())
        for sample in family.samples
        if not sample.labels
    }
    assert values["irv2_ready"] == 1
    assert values["irv2_running_batches"] == 2
    assert values["irv2_log_lines_lost_total"] == 7


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_is_measured(metrics):
    names = {family.name for family in plain(metrics.text().decode())}
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "process_open_fds"} <= names


def test_turned_images_are_counted(metrics):
    ModelMetrics(metrics, "id", Sums.of_one_process(4)).observe_turned_image()
    assert "irv2_turned_images_total 1.0" in metrics.text().decode()
