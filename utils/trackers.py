"""Experiment trackers, chosen by the one setting `report_to`; none of them asks for an account.

TensorBoard comes with the course. For the others install a package and name it: "wandb" (Weights & Biases), "trackio",
"aim"; "none" tracks nothing. transformers has a callback for each but Aim, whose own package brings one.
"""

import importlib.util
import os

from transformers.integrations import integration_utils

from utils.errors import CourseError
from utils.paths import ROOT


def keep_offline():
    """Lets Weights & Biases write its runs to the disk only, unless you chose otherwise (WANDB_MODE), and makes "aim"
    a value of `report_to`. The files of all trackers lie below outputs/, where nobody has chosen another folder."""
    os.environ.setdefault("WANDB_MODE", "offline")
    folders = {"WANDB_DIR": ROOT / "outputs", "TRACKIO_DIR": ROOT / "outputs" / "trackio"}
    for variable, folder in folders.items():
        if variable not in os.environ:
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[variable] = str(folder)
    integration_utils.INTEGRATION_TO_CALLBACK["aim"] = _aim_callback()


def _aim_callback():
    """The class that Trainer makes a callback of for `report_to="aim"`."""
    if importlib.util.find_spec("aim") is None:
        return _AimIsMissing
    from aim.hugging_face import AimCallback

    class AimBelowOutputs(AimCallback):
        """Aim's own callback; its runs lie in outputs/.aim: `aim up --repo outputs` shows them."""

        def __init__(self):
            repository = ROOT / "outputs"
            repository.mkdir(exist_ok=True)
            super().__init__(repo=os.environ.get("AIM_REPO", str(repository)), capture_terminal_logs=False)

    return AimBelowOutputs


class _AimIsMissing:
    """Says what is missing when Trainer makes its callbacks."""

    def __init__(self):
        raise CourseError('report_to is "aim", and the package aim is not installed; install it, or use "tensorboard".')
