"""Writes constraints-hashes.txt: the versions of constraints.txt, and what they need on Linux, with the hashes of PyPI.

Run it on Linux after constraints.txt has changed: `python .ci/lock_hashes.py`. It asks pip what it would install, so it
downloads a few GB and installs nothing. The torch of PyPI is the one for CUDA; a hash of another torch is not in it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS, ARCHITECTURES = ("3.11", "3.12", "3.13"), ("x86_64", "aarch64")
GLIBC = (*(f"_2_{minor}" for minor in range(34, 4, -1)), "2014", "2010", "1")
SOURCES_ONLY = "rouge_score"  # PyPI has no wheel of it
HEADER = """# Written by .ci/lock_hashes.py: constraints.txt with hashes, for Linux on x86-64 and arm64, Python {}.
# pip install --require-hashes -r constraints-hashes.txt && pip install --no-deps --no-build-isolation -e .
"""


def report(folder, *options):
    """What pip would install: [(name, version, sha256)]."""
    path = folder / "report.json"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        str(path),
    ]
    own = {"PIP_CONFIG_FILE": os.devnull, "PIP_CACHE_DIR": str(folder / "cache")}
    own["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    kept = {name: value for name, value in os.environ.items() if name == "PIP_CERT" or not name.startswith("PIP_")}
    if subprocess.run([*command, "--index-url", "https://pypi.org/simple", *options], env=kept | own).returncode:
        sys.exit("pip found no answer; its own words stand above.")
    found = []
    for item in json.loads(path.read_text("utf-8"))["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        found.append((name, item["metadata"]["version"], item["download_info"]["archive_info"]["hashes"]["sha256"]))
    return found


def main():
    """Resolve once on this machine, then ask for the files of each platform."""
    hashes = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
        wanted = [line.split("#")[0].replace(" ", "") for line in lines if line and not line.startswith(("#", "-"))]
        resolved = report(folder, "--constraint", str(ROOT / "constraints.txt"), *wanted)
        pins = [f"{name}=={version}" for name, version, _ in resolved]
        for architecture in ARCHITECTURES:
            platforms = [f"--platform=manylinux{glibc}_{architecture}" for glibc in GLIBC]
            for python in PYTHONS:
                options = [f"--python-version={python}.9", "--only-binary=:all:", f"--no-binary={SOURCES_ONLY}"]
                options += [*platforms, "--no-deps", f"--target={folder / 'target'}"]
                print(f"Python {python} on {architecture}", flush=True)
                for package, version, sha256 in report(folder, *options, *pins):
                    hashes.setdefault((package, version), set()).add(sha256)
    text = HEADER.format(", ".join(PYTHONS))
    for (package, version), found in sorted(hashes.items()):
        text += (
            " \\\n".join([f"{package}=={version}", *(f"    --hash=sha256:{sha256}" for sha256 in sorted(found))]) + "\n"
        )
    (ROOT / "constraints-hashes.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
