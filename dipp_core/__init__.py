"""Diff-Instruct++ and Diff-Instruct*: aligning one-step text-to-image generators with human preferences."""

__version__ = "0.1.0"
