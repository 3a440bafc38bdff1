"""The images that an export keeps for the server to try its engine on."""

import numpy as np
import pytest
from exported import Exported

from irv2.bundle import Bundle
from irv2.convert.publish.evidence import choose_self_test
from irv2.data.dataset import open_split
from irv2.errors import EngineError
from irv2.ledger import Predictions
from irv2.runners.base import Runner
from irv2.runners.choose import open_best
from irv2.self_test import NUM_IMAGES, SELF_TEST, SelfTest


class StuckRunner(Runner):
    """An engine that loads, runs and always answers the same."""

    backend, image_size, num_classes, max_batch = "stuck", 1, 5, 8

    def run(self, images):
        return np.eye(5, dtype=np.float32)[[0] * len(images)]


def test_an_export_keeps_images_that_its_own_engine_answers(exported: Exported):
    bundle = Bundle.open(exported.bundle)
    kept = SelfTest.load(bundle.path / SELF_TEST)
    side = bundle.preprocess.crop
    assert kept.images.shape == (NUM_IMAGES, side, side, 3)
    with open_best(bundle.path, bundle.artifacts).runner as runner:
        for size in (1, 3, 8):
            kept.check(runner.run(kept.batch(size)), runner.backend)
        wrong = SelfTest(kept.images, (kept.top1 + 1) % runner.num_classes, kept.margins)
        with pytest.raises(EngineError, match="3 of 3 known images"):
            wrong.check(runner.run(wrong.batch(3)), runner.backend)


def ledger(files, top1, margins) -> Predictions:
    logits = np.zeros((len(top1), 5), np.float32)
    logits[np.arange(len(top1)), top1] = margins
    return Predictions(tuple(files), ("",) * len(top1), np.array(top1), logits)


def test_the_clearest_images_of_different_classes_are_chosen_where_all_agree(exported: Exported):
    bundle = Bundle.open(exported.bundle)
    folder = open_split(exported.data, "val", tuple(bundle.classes), "error")
    files = folder.files[:7]
    reference = ledger(files, [0, 0, 1, 2, 2, 3, 0], [9, 8, 2, 1, 3, 7, 6])
    artefact = ledger(files, [0, 0, 1, 2, 2, 4, 0], [9] * 7)  # disagrees on the sixth
    chosen = choose_self_test([reference, artefact], folder, bundle.preprocess)
    assert chosen.top1.tolist() == [0, 2, 1, 0]
    assert chosen.margins.tolist() == [9, 3, 2, 8]
    with pytest.raises(EngineError):
        chosen.check(StuckRunner().run(chosen.batch(4)), "stuck")


def test_without_a_common_answer_there_is_nothing_to_keep(exported: Exported):
    bundle = Bundle.open(exported.bundle)
    folder = open_split(exported.data, "val", tuple(bundle.classes), "error")
    opposed = [ledger(folder.files[:2], top1, [1, 1]) for top1 in ([0, 1], [1, 0])]
    assert choose_self_test(opposed, folder, bundle.preprocess) is None
