"""`python -m tests.chaos --profile P --seed S`: one run; exit 1 when anything is wrong."""

import argparse
import json
import sys
import time
from pathlib import Path

from tests.chaos.databases import DATABASES, opened
from tests.chaos.profiles import PROFILES
from tests.chaos.run import Run


def main() -> int:
    """Run and tell."""
    parser = argparse.ArgumentParser(description="Chaos: real processes, real kills, and a checker.")
    parser.add_argument("--profile", choices=PROFILES, default="smoke")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--secs", type=float, help="seconds of trouble, instead of the profile's")
    parser.add_argument("--every", type=float, help="seconds between two blows, instead of the profile's")
    parser.add_argument("--database", choices=DATABASES, default="sqlite", help="where the store is")
    parser.add_argument("--report", type=Path, help="write the report there too")
    asked = parser.parse_args()
    profile = PROFILES[asked.profile]
    if asked.secs:
        profile = profile._replace(secs=asked.secs)
    if asked.every:
        profile = profile._replace(every_secs=asked.every)
    began = time.monotonic()
    with opened(asked.database) as url:
        run = Run(asked.profile, profile, asked.seed, database_url=url)
        print(f"chaos: {run.world.path}", file=sys.stderr, flush=True)
        report = run.go()
    report["database"] = asked.database
    report["secs"] = round(time.monotonic() - began, 1)
    text = json.dumps(report, indent=1)
    if asked.report:
        asked.report.write_text(text + "\n")
    print(text)
    print(
        f"{report['jobs']} jobs, {report['kill_9']} kill -9, {report['verified_bytes']} bytes verified, "
        f"{len(run.violations)} violations (profile {asked.profile}, seed {asked.seed}, "
        f"store in {asked.database})"
    )
    return 1 if run.violations else 0


if __name__ == "__main__":
    sys.exit(main())
