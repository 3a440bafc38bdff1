"""Real front ends before a real engine, where the engine's process has no file left."""

import asyncio
import os
import resource
from contextlib import contextmanager
from dataclasses import replace

import grpc
from serving_site import OPTIONS, request
from tiny_bundle import write_tiny_bundle

from irv2.serve.front_ends.counter_folder import CounterFolder
from irv2.serve.front_ends.shared_model import SharedModel
from irv2.serve.front_ends.supervisor import FrontEnds
from irv2.serve.operations.metrics import Metrics
from irv2.serve.pipeline.engine import open_model
from irv2.v1 import classifier_pb2_grpc


@contextmanager
def no_file_left():
    """Not even one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_one = os.dup(0)
    os.close(next_one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def answering_model(port: int) -> str:
    """The model that answers a new connection; asked again while front ends are replaced."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        stub = classifier_pb2_grpc.ClassifierStub(channel)
        return (await stub.Classify(request(0), timeout=20, wait_for_ready=True)).model_id


def test_a_front_end_that_cannot_get_a_new_model_is_replaced_by_one_that_has_it(tmp_path):
    options = replace(OPTIONS, num_front_ends=2)
    paths = [write_tiny_bundle(tmp_path / f"{n}.bundle", seed=n) for n in (0, 1)]
    counters = CounterFolder()

    async def never() -> None:
        pass

    async def scenario():
        models = [SharedModel(open_model(p, options), options, Metrics(), never) for p in paths]
        front_ends = FrontEnds(options, models[0], Metrics(), str(counters.path))
        with options.listen.ready_for_grpc() as names:
            port = front_ends.bind(names, options.listen)
        try:
            await front_ends.start()
            for model in models:
                await model.start()
            await front_ends.use(models[0])
            assert await answering_model(port) == models[0].description.id
            before = set(front_ends.pids)
            with no_file_left():
                await front_ends.use(models[1])
            async with asyncio.timeout(30):
                while before & set(front_ends.pids) or len(front_ends.pids) < 2:
                    await asyncio.sleep(0.01)
            assert await answering_model(port) == models[1].description.id
        finally:
            await front_ends.stop()
            await front_ends.close()
            for model in models:
                await model.close()

    try:
        asyncio.run(scenario())
    finally:
        counters.remove()
