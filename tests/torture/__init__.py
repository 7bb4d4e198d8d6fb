"""Merges of tiny models on a machine that fails: `python -m torture` from the folder `tests`, or `make torture`."""
