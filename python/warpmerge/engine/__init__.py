"""Runs merges: one in-flight loop for files and memory, statistics of whole models, progress."""
