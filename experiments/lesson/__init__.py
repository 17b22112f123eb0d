"""The course lesson that `tl` grew from, step by step."""
