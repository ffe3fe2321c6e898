"""What guards a training run: `prepare` is called once, right before `trainer.train()`.

A lesson's trainer is `class LessonTrainer(training.Safeguards, Trainer)`; a plain `Trainer` works as well.
"""

from utils.training.micro_batches import MicroBatches
from utils.training.nan import StopOnNaN
from utils.training.out_of_memory import OutOfMemoryRetry
from utils.training.preparation import prepare
from utils.training.safeguards import Safeguards

__all__ = ["MicroBatches", "OutOfMemoryRetry", "Safeguards", "StopOnNaN", "prepare"]
