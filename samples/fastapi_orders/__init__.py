"""An HTTP API whose orders survive its process."""
