"""What the lessons import. Importing any part of it prepares the process for torch (see `utils/startup.py`), and says
which packages are not those that requirements.txt asks for."""

from utils import startup

startup.prepare()

from utils import versions  # noqa: E402 - after the line above, which must come before all else

versions.check()
