"""Ours, the peers and the machine's limit, side by side in one run (`bin/bench`)."""
