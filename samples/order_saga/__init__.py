"""An order as a saga: what was done is undone where the rest of it fails."""
