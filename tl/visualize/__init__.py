"""Ideal images: `objectives` (what to maximise) x `images` (parameterisation) x `tl.transforms`, put together by `render`."""
