"""Settings: typed models, `key=value` and YAML merged into one frozen `RunConfig`, every mistake in one message."""
