"""`python -m wasman_sdk` is the command `wasman`."""

from wasman_sdk.cli import main

if __name__ == "__main__":
    main()
