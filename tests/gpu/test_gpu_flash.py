"""FlashAttention 4 on a GPU: the kernels compute what eager attention does."""

import pytest
import torch
from small_models import gemma2_batch, gemma2_classifier, loss_logits_and_gradients

from utils.speed import flash

pytestmark = pytest.mark.skipif(flash.why_not() != "", reason="needs an H100 or newer and the package flash-attn-4")


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 70}], ids=str)
def test_the_kernels_compute_what_eager_does(changes):
    def computed(attention, dtype):
        model = gemma2_classifier(attention, dtype, head_dim=256, initializer_range=0.1, **changes)
        return loss_logits_and_gradients(model.to("cuda"), gemma2_batch(200))

    exact = computed("eager", torch.float32)
    eager = computed("eager", torch.bfloat16)
    fast = computed(flash.compiled_flash(), torch.bfloat16)
    for right, one, other in zip(exact, fast, eager, strict=True):
        assert (one - right).norm() <= 2 * (other - right).norm() + 1e-6, "further off than eager in bfloat16"
