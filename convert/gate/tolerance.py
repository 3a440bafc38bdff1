"""What the gate accepts of an artefact, by precision or as the user says."""

from dataclasses import dataclass

from irv2.convert.gate.limits import CONFIDENCE
from irv2.errors import UsageError
from irv2.manifest import AcceptedLoss, PerClass, Precision
from irv2.measures.agreement import smallest_passing_n

TOLERANCE_POINTS: dict[Precision, float] = {"fp32": 0.1, "fp16": 0.25, "bf16": 0.5, "int8": 1.0}
SAMPLE_TOLERANCE_POINTS = 2.5  # 360 images can't show less than 0.83; fp32 keeps its own
# How many percent of the images may get another best class than from the checkpoint.
DISAGREEMENT_POINTS: dict[Precision, float] = {"fp32": 0.5, "fp16": 1.0, "bf16": 3.0, "int8": 8.0}
SAMPLE_DISAGREEMENT_POINTS = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What is accepted, in percentage points, and how sure the gate has to be."""

    top1_points: float
    top5_points: float
    disagreement_points: float
    confidence: float = CONFIDENCE
    accept_chance: bool = False  # a checkpoint that is not shown to be better than guessing
    per_class: PerClass = "fail"
    is_sample: bool = False  # the built-in sample's row, wider than any other: its lines say so

    def __post_init__(self) -> None:
        smallest = min(self.top1_points, self.top5_points, self.disagreement_points)
        if smallest <= 0:
            raise UsageError("tolerance", f"{smallest}", "more than 0 points")
        if not 0.5 <= self.confidence < 1:
            raise UsageError("confidence", f"{self.confidence}", "0.5 to below 1")

    @property
    def fewest_images(self) -> int:
        """The fewest that can pass, with every answer like the checkpoint's."""
        strictest = min(self.top1_points, self.top5_points, self.disagreement_points)
        return smallest_passing_n(strictest, self.confidence)

    @property
    def accepted_loss(self) -> AcceptedLoss:
        """What the bundle records of it, for a gate on another machine."""
        return AcceptedLoss(
            top1_points=self.top1_points,
            top5_points=self.top5_points,
            confidence=self.confidence,
            disagreement_points=self.disagreement_points,
            accept_chance=self.accept_chance,
            per_class=self.per_class,
        )


def tolerance_for(
    precision: Precision,
    *,
    is_sample: bool = False,
    top1_points: float | None = None,
    top5_points: float | None = None,
    disagreement_points: float | None = None,
    confidence: float = CONFIDENCE,
    accept_chance: bool = False,
    per_class: PerClass = "fail",
) -> Tolerance:
    """The row of the table for `precision`; values given by the user replace it.

    Every image that is lost has changed, so that a top-1 tolerance wider than the table's limit of
    disagreement widens that too, unless the user names one.
    """
    sample_row = is_sample and precision != "fp32"
    row = SAMPLE_TOLERANCE_POINTS if sample_row else TOLERANCE_POINTS[precision]
    most_changed = SAMPLE_DISAGREEMENT_POINTS if sample_row else DISAGREEMENT_POINTS[precision]
    top1 = row if top1_points is None else top1_points
    return Tolerance(
        top1_points=top1,
        top5_points=row if top5_points is None else top5_points,
        disagreement_points=max(most_changed, top1)
        if disagreement_points is None
        else disagreement_points,
        confidence=confidence,
        accept_chance=accept_chance,
        per_class=per_class,
        is_sample=sample_row,
    )
