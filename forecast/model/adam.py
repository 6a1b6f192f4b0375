"""Adam by torch's fused kernel, without ``torch.optim``: its first use imports torch's compiler, a second or more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Adam:
    """The optimizer of Kingma & Ba (2015), with the defaults and the state of ``torch.optim.Adam(fused=True)``."""

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float) -> None:
        """Start with moments of zero."""
        self._parameters = list(parameters)
        self._learning_rate = learning_rate
        self._means = [torch.zeros_like(each) for each in self._parameters]
        self._squares = [torch.zeros_like(each) for each in self._parameters]
        self._steps = [torch.zeros((), dtype=torch.float32, device=each.device) for each in self._parameters]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters that have a gradient."""
        having = [(i, each.grad) for i, each in enumerate(self._parameters) if each.grad is not None]
        steps = [self._steps[i] for i, _ in having]
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            [self._parameters[i] for i, _ in having],
            [gradient for _, gradient in having],
            [self._means[i] for i, _ in having],
            [self._squares[i] for i, _ in having],
            [],
            steps,
            lr=self._learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """The moments and step counts, in the form of ``torch.optim.Adam``."""
        moments = zip(self._steps, self._means, self._squares, strict=True)
        return {
            "state": {
                number: {"step": step, "exp_avg": mean, "exp_avg_sq": square}
                for number, (step, mean, square) in enumerate(moments)
            }
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict``, also of ``torch.optim.Adam``; parameters without a state start anew.

        Raises:
            RuntimeError: when the state is that of other parameters.
        """
        for number, found in state["state"].items():
            for own, name in ((self._steps, "step"), (self._means, "exp_avg"), (self._squares, "exp_avg_sq")):
                own[number].copy_(found[name])
