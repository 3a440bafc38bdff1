"""What this machine can run, how fast, and what is wrong."""
