"""What a lesson's trainer does beyond Trainer."""

from peft import PeftModel

from utils.errors import CourseError
from utils.training import adapters
from utils.training.out_of_memory import OutOfMemoryRetry
from utils.training.weight_files import numbers_written


class Safeguards(OutOfMemoryRetry):
    """Trainer mixin: a step survives a full memory (see OutOfMemoryRetry), what is saved is all that was trained, and
    an adapter is saved with what tells its base from others (see `adapters.save_fingerprint`).

    It stands before the trainer among the bases: `class LessonTrainer(Safeguards, Trainer)`, and before Seq2SeqTrainer
    or SFTTrainer likewise. Plain Trainer works as well.
    """

    def save_model(self, output_dir=None, _internal_call=False):
        """As Trainer's, also for each checkpoint; an adapter gets `base_fingerprint.json` beside it, but not in those.

        Raises CourseError if the files hold fewer numbers than were trained, as with FSDP2 and its own activation
        checkpointing, where only the head is written.
        """
        super().save_model(output_dir, _internal_call=_internal_call)
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        model = self.accelerator.unwrap_model(self.model)
        is_adapter = isinstance(model, PeftModel)
        check_written(model, folder, "adapter_model" if is_adapter else "model")
        if is_adapter and not _internal_call:
            adapters.save_fingerprint(model, folder)


def check_written(model, folder, stem):
    """Raises CourseError if the weights in a folder are fewer numbers than those of the model that are trained.

    Nothing is said of a folder without such weights: a sharded checkpoint has files of another kind.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    written = numbers_written(folder, stem)
    if written is not None and written < trained:
        problem = f"{trained:,} numbers were trained, but {written:,} were written"
        remedy = "keep this process, and save with model.save_pretrained without sharding and activation checkpointing"
        raise CourseError(f"{folder}: {problem}; {remedy}.")
