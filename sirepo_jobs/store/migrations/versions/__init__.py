"""One file per migration, `vNNNN_what.py`, with `revision = "NNNN"`."""
