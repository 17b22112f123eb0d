"""Absl scripts over `tl`, one command each: copy one to start a paper."""
