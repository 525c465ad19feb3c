"""What holds for every test."""

import os
from pathlib import Path

# Compiled code goes to the checkout and not to the cache of whoever runs the tests; processes that they start follow.
os.environ["WASMAN_CACHE"] = str(Path(__file__).resolve().parent.parent / ".cache" / "code")
