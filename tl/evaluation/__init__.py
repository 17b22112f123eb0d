"""Measurements: accuracy on a set and under attack, perceptual distance, postprocessing."""
