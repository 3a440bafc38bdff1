"""The learner: a training step with its batch norm, weight average and memory."""
