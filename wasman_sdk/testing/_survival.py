"""Whether a program gives the same, wherever its worker dies."""
