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
PYTHONS = ("3.11", "3.12", "3.13")
ARCHITECTURES = ("x86_64", "aarch64")
GLIBC = [f"_2_{minor}" for minor in range(34, 4, -1)] + ["2014", "2010", "1"]  # of the manylinux tags, newest first
SOURCES_ONLY = "rouge_score"  # PyPI has no wheel of it
HEADER = """# Written by .ci/lock_hashes.py: constraints.txt with hashes, for Linux on x86-64 and arm64, Python {}.
# pip install --require-hashes -r constraints-hashes.txt && pip install --no-deps --no-build-isolation -e .
"""


def pip_environment(folder):
    """The environment variables for pip: settings of this machine stay out, but for its certificates."""
    variables = {}
    for name, value in os.environ.items():
        if name == "PIP_CERT" or not name.startswith("PIP_"):
            variables[name] = value
    variables["PIP_CONFIG_FILE"] = os.devnull
    variables["PIP_CACHE_DIR"] = str(folder / "cache")
    variables["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    return variables


def what_pip_would_install(folder, *options):
    """[(name, version, sha256)] of the files that pip would install from PyPI; SystemExit if it finds no answer."""
    path = folder / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--report", str(path), "--index-url", "https://pypi.org/simple", *options]
    if subprocess.run(command, env=pip_environment(folder)).returncode != 0:
        sys.exit("pip found no answer; its own words stand above.")
    files = []
    for item in json.loads(path.read_text("utf-8"))["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        sha256 = item["download_info"]["archive_info"]["hashes"]["sha256"]
        files.append((name, item["metadata"]["version"], sha256))
    return files


def requirements():
    """The lines of requirements.txt without comments and options."""
    lines = []
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        requirement = line.split("#")[0].replace(" ", "")
        if requirement and not requirement.startswith("-"):
            lines.append(requirement)
    return lines


def hashes_of_all_platforms(folder):
    """{(name, version): set of sha256}: resolved once on this machine, then asked for the files of each platform."""
    resolved = what_pip_would_install(folder, "--constraint", str(ROOT / "constraints.txt"), *requirements())
    pins = [f"{name}=={version}" for name, version, _ in resolved]
    hashes = {}
    for architecture in ARCHITECTURES:
        platforms = [f"--platform=manylinux{glibc}_{architecture}" for glibc in GLIBC]
        for python in PYTHONS:
            print(f"Python {python} on {architecture}", flush=True)
            options = [f"--python-version={python}.9", "--only-binary=:all:", f"--no-binary={SOURCES_ONLY}"]
            options += [*platforms, "--no-deps", f"--target={folder / 'target'}"]
            for name, version, sha256 in what_pip_would_install(folder, *options, *pins):
                hashes.setdefault((name, version), set()).add(sha256)
    return hashes


def main():
    """Writes constraints-hashes.txt."""
    with tempfile.TemporaryDirectory() as folder:
        hashes = hashes_of_all_platforms(Path(folder))
    text = HEADER.format(", ".join(PYTHONS))
    for (name, version), digests in sorted(hashes.items()):
        lines = [f"{name}=={version}"]
        for sha256 in sorted(digests):
            lines.append(f"    --hash=sha256:{sha256}")
        text += " \\\n".join(lines) + "\n"
    (ROOT / "constraints-hashes.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
