"""Measurements: accuracy on a set, accuracy under attack, perceptual distance, what survives postprocessing."""
