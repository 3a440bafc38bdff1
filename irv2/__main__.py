"""`python -m irv2`."""

from irv2.cli import main

main.main(prog_name="irv2")
