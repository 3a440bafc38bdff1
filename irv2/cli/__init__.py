"""What every command line shares, and the table of programs."""
