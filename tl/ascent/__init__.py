"""The one loop that improves an objective on an input, and the random views of the input between its steps."""
