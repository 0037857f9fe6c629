"""Building blocks of methods: losses, heads, momentum encoders, queues, memory banks, health of features."""
