"""What a lesson's trainer does beyond Trainer."""

from peft import PeftModel

from utils.training import adapters
from utils.training.out_of_memory import OutOfMemoryRetry


class Safeguards(OutOfMemoryRetry):
    """Trainer mixin: a step survives a full memory (see OutOfMemoryRetry), and an adapter is saved with what tells its
    base from others (see `adapters.save_fingerprint`).

    It stands before the trainer among the bases: `class LessonTrainer(Safeguards, Trainer)`, and before Seq2SeqTrainer
    or SFTTrainer likewise. Plain Trainer works as well.
    """

    def save_model(self, output_dir=None, _internal_call=False):
        """As Trainer's; an adapter gets `base_fingerprint.json` beside it, but not in each checkpoint."""
        super().save_model(output_dir, _internal_call=_internal_call)
        model = self.accelerator.unwrap_model(self.model)
        if not _internal_call and isinstance(model, PeftModel) and self.args.should_save:
            adapters.save_fingerprint(model, output_dir or self.args.output_dir)
