"""Pictures that evaluators draw."""
