"""A thousand activities, only so many at once."""
