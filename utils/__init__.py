"""What the lessons import. Importing any part of it prepares the process for torch: see `utils/startup.py`."""

from utils import startup

startup.prepare()
