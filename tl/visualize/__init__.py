"""Feature visualization: objective x parameterization x transforms, and what they are measured by.

objectives   functions to maximize
images       parameterizations
render       the compiled optimization of an image
specs, grid  objectives as words, and a grid of ideal images
ideal        ideal images with their measurements
compare      the same channels under two sets of weights
activations  feature maps and banks
exemplars    real images that activate a unit most
filters, maps, judge   filters and maps as images, quality measures
"""
