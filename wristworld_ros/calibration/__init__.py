"""Calibration of a station from robot motion: wrist camera mount, intrinsics, fixed cameras."""
