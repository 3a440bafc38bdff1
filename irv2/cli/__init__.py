"""The parts that all command lines share, and the table of programs."""
