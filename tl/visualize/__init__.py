"""Ideal images: `objectives` (what to maximise) x `images` (parameterisation) x `transforms`, put together by `render`."""
