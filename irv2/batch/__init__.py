"""Classify any number of files into one Parquet file, in steps that survive being killed."""
