"""The same tensors through warpmerge, mergekit and PEFT: docs/compatibility.md.

`python -m benchmarks.compatibility` installs the other programs in an environment of their own, runs every case of
`cases.py` through both sides, and writes what it measured into benchmarks/results/ and the page.
"""
