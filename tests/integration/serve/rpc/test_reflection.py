"""Reflection, as clients of either version ask for it."""

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2 as v1alpha
from grpc_reflection.v1alpha import reflection_pb2_grpc as v1alpha_grpc
from serving_site import scenario_with

from irv2.reflection import reflection_pb2 as v1
from irv2.reflection import reflection_pb2_grpc as v1_grpc

SERVICES = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
    "irv2.v1.Classifier",
}


@pytest.mark.parametrize(
    ("messages", "stubs"), [(v1, v1_grpc), (v1alpha, v1alpha_grpc)], ids=["v1", "v1alpha"]
)
def test_each_service_is_listed_and_described(bundle, messages, stubs):
    asked = messages.ServerReflectionRequest

    async def scenario(site):
        call = stubs.ServerReflectionStub(site.channel).ServerReflectionInfo()

        async def answer_to(request):
            await call.write(request)
            return await call.read()

        listed = (await answer_to(asked(list_services=""))).list_services_response.service
        assert {service.name for service in listed} == SERVICES
        for name in SERVICES:
            answer = await answer_to(asked(file_containing_symbol=name))
            pool, files = DescriptorPool(), answer.file_descriptor_response.file_descriptor_proto
            for file in reversed(files):  # what a file imports comes after it
                pool.Add(FileDescriptorProto.FromString(file))
            assert pool.FindServiceByName(name).methods
        unknown = await answer_to(asked(file_containing_symbol="irv2.v1.Nothing"))
        assert unknown.error_response.error_code == 5  # NOT_FOUND
        assert unknown.original_request.file_containing_symbol == "irv2.v1.Nothing"
        await call.done_writing()

    scenario_with(bundle, scenario)


def test_both_versions_are_the_same_on_the_wire():
    def shape(file) -> str:
        proto = FileDescriptorProto()
        file.DESCRIPTOR.CopyToProto(proto)
        proto.ClearField("options")
        proto.name = ""
        return str(proto).replace("v1alpha", "v1")

    assert shape(v1) == shape(v1alpha)
