"""Callbacks that watch the forward passes of a training through a hook on the model."""

from transformers import TrainerCallback


class ForwardHookCallback(TrainerCallback):
    """A callback whose hook is on the model while a training runs.

    `Trainer` tells its callbacks that a training has ended, but not that it has failed. So the hook is removed when the
    training ends, when the next one begins, and by `remove_hooks`, which `OutOfMemoryRetry` calls in both cases.
    """

    hook = None

    def add_hook(self, model):
        """Puts the hook on `model`; returns the handle with which torch removes it."""
        raise NotImplementedError

    def remove_hook(self):
        """Takes the hook off the model, if there is one."""
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Puts the hook on the model that is trained; one that a failed training has left is removed first."""
        self.remove_hook()
        self.hook = self.add_hook(model)

    def on_train_end(self, args, state, control, **kwargs):
        """Takes the hook off again."""
        self.remove_hook()


def remove_hooks(callbacks):
    """Takes the hooks of all these callbacks off the model."""
    for callback in callbacks:
        if isinstance(callback, ForwardHookCallback):
            callback.remove_hook()
