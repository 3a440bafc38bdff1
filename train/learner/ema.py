"""The running average of the weights, which `--recipe modern` evaluates besides the raw ones."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Exponential moving average of a network's state, batch-norm statistics included."""

    def __init__(self, model: nn.Module) -> None:
        self.state_dict = {
            name: value.detach().clone() for name, value in model.state_dict().items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """Set state = decay x state + (1 - decay) x the network's; counters are copied."""
        averages: list[Tensor] = []
        currents: list[Tensor] = []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averages.append(self.state_dict[name])
                currents.append(value)
            else:
                self.state_dict[name].copy_(value)
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(averages, currents, 0)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved average."""
        for name, value in state.items():
            self.state_dict[name].copy_(value)
