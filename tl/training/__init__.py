"""Training: rules and phases, the step, the recipe, the loop, probes, adversarial training, checkpoints."""
