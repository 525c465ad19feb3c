"""`make bench-peers`: other durable execution engines, run beside wasman in the same minutes."""
