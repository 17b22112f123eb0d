"""Pretrained weights: find a file, read it without executing anything in it, rename its tensors.

`store` and `hub` find files, `manifest` lists the published ones, `readers` reads them, and `port`
renames their tensors by the tables in `tables`. `tl.models.loading` builds a classifier from them.
"""
