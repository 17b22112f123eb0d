"""Optimization of an input.

The loop that maximizes a score, and the random transforms between its steps.
"""
