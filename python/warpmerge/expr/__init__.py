"""Expressions: what is computed of each element, and the programs that backends carry out."""
