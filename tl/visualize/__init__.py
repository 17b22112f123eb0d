"""Feature visualization: objective x parameterization x transforms, and what they are measured by.

Modules:
  objectives   functions to maximize
  images       parameterizations
  render       the compiled optimization of an image
  specs        objectives as users write them
  grid         a grid of ideal images
  ideal        ideal images with their measurements
  compare      two sets of weights: stages, filters and ideal images
  activations  feature maps and banks
  exemplars    real images that activate a unit most
  filters      convolution filters as images, and their changes
  maps         feature maps as images
  judge        quality measures of images
"""
