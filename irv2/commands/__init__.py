"""The programs that belong to no stage."""
