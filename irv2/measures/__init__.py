"""What is measured of a model: errors, classes, calibration."""
