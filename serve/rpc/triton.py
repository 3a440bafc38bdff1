"""The model that is served, in the words of Triton's extensions of the Open Inference Protocol."""

from irv2.inference import open_inference_pb2 as oip
from irv2.serve.operations.metrics import Statistics
from irv2.serve.pipeline.model import Model


def model_config(model: Model) -> oip.ModelConfig:
    """How the model is run; `max_batch_size` is what a request may hold, split over batches."""
    description = model.description
    return oip.ModelConfig(
        platform=description.backend,
        backend=description.backend.partition("-")[0],
        default_model_filename=model.artifact_file,
        max_batch_size=model.pipeline.limits.max_images,
        input=[oip.ModelInput(name="images", data_type=oip.TYPE_UINT8, dims=model.image_shape)],
        output=[
            oip.ModelOutput(name="logits", data_type=oip.TYPE_FP32, dims=[len(description.classes)])
        ],
        dynamic_batching=oip.ModelDynamicBatching(preferred_batch_size=[description.max_batch]),
    )


def model_statistics(sums: Statistics) -> oip.ModelStatistics:
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
        last_inference=sums.last_ms,
        inference_count=sums.num_images,
        execution_count=sum(sums.batches.values()),
        inference_stats=oip.InferStatistics(
            fail=duration(count=sums.num_failures, ns=sums.failure_ns), **by_stage
        ),
        batch_stats=by_size,
    )
