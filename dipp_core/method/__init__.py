"""What the papers say: schedules, scores, divergences, guidance, and Algorithm 1 of Diff-Instruct++ and Diff-Instruct*.

Import from the file that holds a name, e.g. `from dipp_core.method.algorithm import align`: a notebook then depends on
what it uses and on nothing else.
"""
