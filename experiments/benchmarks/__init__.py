"""Comparisons with other libraries: speed, layer by layer, attacks."""
