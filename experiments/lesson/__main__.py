"""Runs the lesson as `python -m experiments.lesson`."""

import runpy

runpy.run_module("experiments.lesson.lesson", run_name="__main__", alter_sys=True)
