"""TrainingSetup that methods share: losses, heads, momentum encoders, queues, memory banks, health of features."""
