"""How a lesson begins."""

from utils import session
from utils.training import adapters
from utils.training.model_files import check_model


def start(folder, model_id=None, *, dtype="float32", max_length=None, converted=False):
    """Begins a lesson; returns its output folder as a Path.

    It chooses the number of threads (`session.choose_threads`), prints what this machine has (`session.report`),
    refuses a number type that the machine has no units for (`session.check_dtype`), takes the output folder for this
    process (`session.own_folder`), refuses a model whose files are damaged or could run code, or which has fewer
    positions than max_length (`check_model`, which knows `converted`, too), and keeps 4-bit weights trainable on every
    CPU (`adapters.keep_trainable`). Raises CourseError:
    one sentence with the remedy.
    """
    session.choose_threads(model_id)
    session.report()
    session.check_dtype(dtype)
    output_dir = session.own_folder(folder)
    if model_id is not None:
        check_model(model_id, converted=converted, max_length=max_length)
    adapters.keep_trainable()
    return output_dir
