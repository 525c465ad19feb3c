"""A subscription: a bill a month, for years."""
