"""The order of the work on a cluster, with a stand-in for Ray, which CI lacks.

tests/long/batch_ray.py does it with real nodes.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from irv2.batch.source import Picture
from irv2.errors import EngineError


class Died(Exception):
    """Ray's RayActorError."""


class Lost(Exception):
    """Ray's ObjectLostError: an answer was on a node that died before it was fetched."""


class Node:
    """A worker of Ray's that answers at once, or dies when nobody else has anything to do."""

    def __init__(self, *, dies: bool, loses: int = 0) -> None:
        self.dies, self.loses = dies, loses
        self.rows = SimpleNamespace(remote=lambda pictures: (self, tuple(pictures)))


@pytest.fixture
def on_ray(monkeypatch):
    names = ("ray", "ray.exceptions", "ray.util", "ray.util.scheduling_strategies")
    ray, exceptions, _, strategies = modules = [ModuleType(name) for name in names]
    for name, module in zip(names, modules, strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    exceptions.RayActorError, exceptions.RayError, exceptions.RayTaskError = Died, OSError, OSError
    exceptions.ObjectLostError = Lost
    strategies.NodeAffinitySchedulingStrategy = None
    ray.wait = lambda answers: ([min(answers, key=lambda answer: answer[0].dies)], None)

    def get(answer):
        node, pictures = answer
        if node.dies:
            raise Died
        if node.loses:
            node.loses -= 1
            raise Lost
        return list(pictures)

    ray.get = get
    monkeypatch.delitem(sys.modules, "irv2.batch.on_ray", raising=False)
    import irv2.batch.on_ray

    yield irv2.batch.on_ray
    sys.modules.pop("irv2.batch.on_ray")


def test_no_row_is_lost_when_a_node_dies_that_all_the_others_wait_for(on_ray, monkeypatch):
    monkeypatch.setattr(on_ray, "CHUNK", 2)
    monkeypatch.setattr(on_ray, "CHUNKS_AHEAD", 3)
    answers = object.__new__(on_ray.OnRay)
    answers._nodes = {Node(dies=True): "slow", Node(dies=False): "fast"}
    pictures = [Picture(f"{number}.jpg") for number in range(21)]
    assert list(answers.answers(pictures)) == pictures


def test_an_answer_that_is_lost_with_its_node_is_asked_for_again(on_ray, monkeypatch):
    monkeypatch.setattr(on_ray, "CHUNK", 2)
    answers = object.__new__(on_ray.OnRay)
    answers._nodes = {Node(dies=False, loses=2): "one", Node(dies=True): "gone"}
    pictures = [Picture(f"{number}.jpg") for number in range(21)]
    assert list(answers.answers(pictures)) == pictures


def test_a_host_that_no_system_can_look_up_is_one_line(on_ray):
    with pytest.raises(EngineError, match=r"Ray at a\.\.b:1: does not answer"):
        on_ray._connect("a..b:1")
