"""`python -m warpmerge` is the command `warpmerge`."""

from .cli import main

if __name__ == "__main__":
    main()
