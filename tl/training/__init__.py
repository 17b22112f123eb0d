"""Training: rules, recipes, phases, the train step, probes, adversarial training, checkpoints."""
