"""Pretrained weights: find the file (`store`), read it without running it (`readers`), rename its tensors (`port`)."""
