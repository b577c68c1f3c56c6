"""Chaos: the real service under kills and a misbehaving network, and a checker of what came of it.

`bin/chaos --profile smoke --seed 1`; `docs/reliability.md` says what is checked, and how to read a report.
"""
