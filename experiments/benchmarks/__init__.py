"""Comparisons with other libraries: speed, parity of the networks, and attacks."""
