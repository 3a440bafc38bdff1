"""What a server tells of its shadow, a second model on a share of the pictures, in its metrics.

The server writes them and `irv2 shadow` reads them; both sides stand here.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from irv2.measures.agreement import CONFIDENCE, Agreement

# "off": its engine has failed, or it can't be compared with the model that is served now.
State = Literal["comparing", "promoting", "promoted", "off"]
MEANING = (
    "agreement on live pictures without labels, not accuracy: it can't tell which of two answers "
    "that differ is right"
)
_INFO = "irv2_shadow_info"
_COUNTS = {
    "compared": "Pictures that both models have answered.",
    "changed": "Pictures to which the shadow gave another best class.",
    "repeated": "Pictures left out because they had been compared.",
    "dropped": "Pictures of the share for which there was no time.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowReport:
    """What was counted since the served model took over, and the two models."""

    model_id: str
    shadow_id: str
    artifact: str
    precision: str
    backend: str
    state: State
    compared: int
    changed: int
    repeated: int
    dropped: int
    limit_percent: float

    @property
    def agreement(self) -> Agreement:
        """How often the two models agreed."""
        return Agreement(self.compared, self.changed)

    def families(self) -> Iterator[Metric]:
        """The metrics, as Prometheus scrapes them."""
        models = {"model_id": self.model_id, "shadow_id": self.shadow_id}
        about = {"artifact": self.artifact, "precision": self.precision, "backend": self.backend}
        facts = {**models, **about, "state": self.state}
        yield _gauge(_INFO, "The shadow, and what it does.", facts, 1)
        for name, text in _COUNTS.items():
            family = CounterMetricFamily(f"irv2_shadow_{name}", text, labels=[*models])
            family.add_metric([*models.values()], getattr(self, name))
            yield family
        yield _gauge(
            "irv2_shadow_disagreement_lower_percent",
            "Exact lower limit of the rate of other answers, one-sided, 95 %.",
            models,
            self.agreement.lower_percent,
        )
        yield _gauge(
            "irv2_shadow_disagreement_upper_percent",
            "Exact upper limit of the rate of other answers, one-sided, 95 %.",
            models,
            self.agreement.upper_percent,
        )
        yield _gauge(
            "irv2_shadow_max_disagreement_percent",
            "The rate that is accepted.",
            models,
            self.limit_percent,
        )

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Read what `families` wrote; None where the server has no shadow.

        Raises ValueError for what are no metrics.
        """
        samples = {
            sample.name: sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("irv2_shadow_")
        }
        if _INFO not in samples:
            return None
        labels: dict[str, Any] = samples[_INFO].labels
        try:
            counts: dict[str, Any] = {
                name: int(samples[f"irv2_shadow_{name}_total"].value) for name in _COUNTS
            }
            limit = samples["irv2_shadow_max_disagreement_percent"].value
            return cls(**labels, **counts, limit_percent=limit)
        except (KeyError, TypeError) as error:
            raise ValueError(f"a shadow's metrics of another version: {error}") from error

    def to_json(self, limit_percent: float) -> dict[str, object]:
        """Plain values with the verdict on `limit_percent`, for --json."""
        agreement = self.agreement
        return {
            "verdict": agreement.verdict(limit_percent),
            **asdict(self),
            "limit_percent": limit_percent,
            "lower_percent": agreement.lower_percent,
            "upper_percent": agreement.upper_percent,
            "confidence": CONFIDENCE,
            "meaning": MEANING,
        }

    def to_text(self, limit_percent: float) -> str:
        """The verdict on `limit_percent`, what was compared, and what it means, for people."""
        return (
            f"shadow {self.agreement.line(limit_percent)}\n"
            f"served {self.model_id[:12]}, shadow {self.shadow_id[:12]} ({self.artifact}, "
            f"{self.precision}, {self.backend}): {self.state}; {self.repeated} repeated pictures "
            f"left out, {self.dropped} without time\n"
            f"{MEANING}"
        )


def _gauge(name: str, text: str, labels: dict[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[*labels])
    family.add_metric([*labels.values()], value)
    return family
