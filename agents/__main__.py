"""`python -P -m sirepo_jobs.agents VERB`: see `start.py` for the verbs."""

import sys

from sirepo_jobs.agents import start

sys.exit(start.main(sys.argv[1:]))
