"""What wasman costs, measured: `make bench`."""
