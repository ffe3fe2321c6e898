"""Which packages are installed, and which requirements.txt asks for."""

import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from utils.paths import ROOT


def installed():
    """{package: (installed version or None, range that requirements.txt asks for)}, in its order."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines()]
    found = {}
    for wanted in (Requirement(line) for line in lines if line and not line.startswith("-")):
        try:
            found[wanted.name] = metadata.version(wanted.name), wanted.specifier
        except metadata.PackageNotFoundError:
            found[wanted.name] = None, wanted.specifier
    return found


def public_version(version):
    """A version without its local part: "2.13.0" of "2.13.0+cpu", "2.13.0+cu130" and "2.13.0". None stays None.

    The local part names a build. It depends on where a package came from, and two sources of the same build do not
    agree: PyPI's torch calls itself 2.13.0+cu130 and its package 2.13.0. So compare versions without it.
    """
    if version is None:
        return None
    try:
        return Version(version).public
    except InvalidVersion:
        return version


def check():
    """Says on stderr which packages differ from requirements.txt and what to do; silent if none does."""
    wrong = [
        f"{name} {version or 'missing'} (needs {wanted})"
        for name, (version, wanted) in installed().items()
        if not version or not wanted.contains(public_version(version), prereleases=True)
    ]
    if wrong:
        remedy = "Run `pip install -r requirements.txt` and restart the kernel."
        print(f"Not ready: {', '.join(wrong)}. {remedy}", file=sys.stderr)
