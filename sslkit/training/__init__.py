"""From a valid configuration to trained weights: checks, set-up, launch, the loop, one step."""
