"""What learns: the step and its batch norm, averages and memory."""
