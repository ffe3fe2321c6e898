"""Asks PyPI for known vulnerabilities of the versions in constraints.txt: python .ci/audit_pins.py

It reads the page of each version, as pip-audit does. A mirror may have the project's page only; that one speaks of the
newest version, so it counts if the pin is the newest, and otherwise the pin is named as not audited. Exit status 1 if
there is an advisory.
"""

import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


def page(*parts):
    """The JSON page of a project, or of one of its versions, and None if there is none."""
    try:
        with urllib.request.urlopen(f"https://pypi.org/pypi/{'/'.join(parts)}/json", timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError:
        return None


def audit(pin):
    """(pin, ids of its advisories), and None instead of the ids if PyPI does not tell."""
    name, version = pin.split("==")
    found = page(name, version) or page(name)
    if not found or found["info"]["version"] != version:
        return pin, None
    return pin, [advisory["id"] for advisory in found["vulnerabilities"] if not advisory.get("withdrawn")]


def main():
    lines = CONSTRAINTS.read_text("utf-8").split()
    with ThreadPoolExecutor(8) as pool:
        found = dict(pool.map(audit, [line for line in lines if "==" in line]))
    unknown = [pin for pin, ids in found.items() if ids is None]
    faults = {pin: ids for pin, ids in found.items() if ids}
    print(f"{date.today()}: {len(found) - len(unknown)} of {len(found)} pins audited, {len(faults)} with an advisory")
    for pin, ids in faults.items():
        print(f"{pin}: {', '.join(ids)}")
    print("not audited:", ", ".join(unknown) or "none")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
