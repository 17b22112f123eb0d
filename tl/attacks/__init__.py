"""Adversarial pictures: `norms` (where one may go) x `goals` (what for) x `gradient` (how)."""
