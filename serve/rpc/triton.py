"""The model that is served, in the words of Triton's extensions of the Open Inference Protocol."""

from irv2.inference import open_inference_pb2 as oip
from irv2.serve.operations.metrics import Statistics
from irv2.serve.pipeline.model import Model
from irv2.serve.rpc.tensor_models import TensorModel

_DATA_TYPES = {"UINT8": oip.TYPE_UINT8, "FP32": oip.TYPE_FP32, "BYTES": oip.TYPE_STRING}


def model_config(asked: TensorModel, model: Model) -> oip.ModelConfig:
    """How the model is run; `max_batch_size` is what a request may hold, split over batches.

    It is 0 where Triton would not call the first dimension a batch: `dims` then has all of them.
    """
    description, given, outputs = model.description, *asked.described(model)
    first = 1 if asked.has_batch_dimension else 0
    return oip.ModelConfig(
        name=asked.name,
        platform=description.backend,
        backend=description.backend.partition("-")[0],
        default_model_filename=model.artifact_file,
        max_batch_size=model.pipeline.limits.max_images if asked.has_batch_dimension else 0,
        input=[
            oip.ModelInput(
                name=given.name, data_type=_DATA_TYPES[given.datatype], dims=given.shape[first:]
            )
        ],
        output=[
            oip.ModelOutput(
                name=output.name, data_type=_DATA_TYPES[output.datatype], dims=output.shape[first:]
            )
            for output in outputs
        ],
        dynamic_batching=oip.ModelDynamicBatching(preferred_batch_size=[description.max_batch]),
    )


def model_statistics(sums: Statistics, name: str, version: str) -> oip.ModelStatistics:
    """Sums of what the model has done since it took over."""
    duration = oip.StatisticDuration
    by_stage = {
        name: duration(count=sums.num_requests, ns=sums.stage_ns[stage])
        for name, stage in {
            "success": "total",
            "queue": "queue",
            "compute_input": "preprocess",
            "compute_infer": "inference",
        }.items()
    }
    by_size = [
        oip.InferBatchStatistics(
            batch_size=size, compute_infer=duration(count=count, ns=sums.batch_ns[size])
        )
        for size, count in sorted(sums.batches.items())
    ]
    return oip.ModelStatistics(
        name=name,
        version=version,
        last_inference=sums.last_ms,
        inference_count=sums.num_images,
        execution_count=sum(sums.batches.values()),
        inference_stats=oip.InferStatistics(
            fail=duration(count=sums.num_failures, ns=sums.failure_ns), **by_stage
        ),
        batch_stats=by_size,
    )
