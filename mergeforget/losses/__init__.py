"""Unlearning objectives, one file each.

To add one, write ``<name>.py`` here with a function decorated by ``@unlearning_loss("<name>",
source=...)``. It takes the predictions of the policy and of the reference as ``TokenOutputs`` and
returns a scalar to minimise. A recipe may set the keyword-only arguments. No other module
needs an edit: the folder is the list, and ``mergeforget.testing.check_loss`` runs on every member.

``needs=(...)`` names what the trainer must compute for the loss. Without it, a loss reads the
policy's log-probabilities of the answers.

- ``reference``: log-probabilities from the model before unlearning.
- ``logits``, ``reference_logits``: whole next-token distributions; read them with
  ``TokenOutputs.of_logits`` or ``TokenOutputs.divergence``, which compute them in chunks.
- ``hidden``, ``reference_hidden``: hidden states after the layer named by the argument ``layer``.
- ``refusal``: refusals to the same prompts, in ``policy.refusal``; add ``answer`` if the loss also
  reads the forget answers.
- ``alternate``: alternate answers to the same prompts in place of refusals, also in
``policy.refusal``.
- ``reinforced``: whole next-token distributions of the reinforced model, in
  ``reference.reinforced``.
- ``scores``, ``efforts``: weights of tokens and of rows that the trainer computes from hidden
  states, in the policy's attributes of these names.

``additive=False`` declares that the losses of the micro-batches of a step do not add up to the loss
of the whole batch, so that gradient accumulation is only an approximation.

An argument ``mask`` is one of ``mergeforget.outputs.MASKS``: it selects the counted positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mergeforget.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

UNLEARNING_LOSSES: Registry[Callable[..., Tensor]] = Registry(
    "loss", __name__, "mergeforget.losses"
)
unlearning_loss = UNLEARNING_LOSSES.register
