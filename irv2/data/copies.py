"""Copies of one picture: the same bytes, or nearly the same look, as after saving it again smaller.

Near copies have perceptual hashes (the 256 lowest frequencies of 64x64 grey levels, as signs) that
differ in at most NEAR_BITS, and thumbnails of 4x4 pixels that differ in at most NEAR_LEVELS.
Measured on photographs: saved as JPEG of quality 75, or at half the size, they differ in 0 to 6
bits as a rule, different ones in 104 and more; no two of 1437 scans of digits in 16 or fewer. The
usual 64 bits would hold thousands of those for copies. The thumbnail tells plain areas of different
colours apart, whose hashes say nothing. Crops are not found.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from irv2.data.facts import LOOK_BYTES, Facts
from irv2.types import IntArray, UInt8Array

NEAR_BITS = 10
NEAR_LEVELS = 12  # of 255
# Hashes that differ in 10 bits are the same in at least one of 11 parts.
_PARTS = [slice(start, start + 3) for start in range(0, LOOK_BYTES, 3)]


def group_copies(facts: Sequence[Facts]) -> IntArray:
    """Return a number for each image, (n,): the same for copies. Unreadable ones have no copies."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(fact.sha256 or str(i), i), i) for i, fact in enumerate(facts)]
    different = [i for i in first.values() if not facts[i].problem]
    pairs += [(different[i], different[j]) for i, j in _near_pairs([facts[i] for i in different])]
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(left)), (left, right)), shape=(len(facts), len(facts)))
    groups: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def _near_pairs(facts: Sequence[Facts]) -> Iterator[tuple[int, int]]:
    looks = np.frombuffer(b"".join(fact.look for fact in facts), np.uint8).reshape(len(facts), -1)
    colours = np.frombuffer(b"".join(fact.colours for fact in facts), np.uint8)
    colours = colours.reshape(len(facts), -1)
    for part in _PARTS:
        keys = np.zeros((len(facts), 4), np.uint8)
        keys[:, : looks[:, part].shape[1]] = looks[:, part]
        values = keys.view(np.uint32)[:, 0]
        order = np.argsort(values, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(values[order])) + 1):
            if len(members) > 1:
                yield from _near_in(members, looks, colours)


def _near_in(
    members: IntArray, looks: UInt8Array, colours: UInt8Array
) -> Iterator[tuple[int, int]]:
    for k, i in enumerate(members[:-1]):
        others = members[k + 1 :]
        bits = np.bitwise_count(looks[others] ^ looks[i]).sum(axis=1)
        others = others[bits <= NEAR_BITS]
        levels = np.abs(colours[others].astype(np.int16) - colours[i]).max(axis=1, initial=0)
        yield from ((int(i), int(j)) for j in others[levels <= NEAR_LEVELS])
