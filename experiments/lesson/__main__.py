"""`python -m experiments.lesson`."""

from experiments.lesson import lesson
from tl import cli

cli.launch("lesson", lesson.main, lesson.define_flags)
