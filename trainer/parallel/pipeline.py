"""Consecutive blocks on each process; the micro-batches of a step flow through them (pipeline parallel).

``grad_accum_steps`` is the number of micro-batches in the pipeline. GPipe runs all forwards, then all backwards; 1F1B
begins backwards as early as it can and so keeps fewer activations. Sources: Huang et al. 2019,
https://arxiv.org/abs/1811.06965; Narayanan et al. 2019, https://arxiv.org/abs/1806.03377.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from monitor.errors import ConfigError
from trainer.config import PrecisionConfig, TrainConfig
from trainer.parallel.group import Parallel
from trainer.parallel.layout import Layout, Loss, Scaled
from trainer.precision import build_precision
from trainer.tasks.base import Batch
from trainer.tasks.gpt import GPT

Schedule = ScheduleGPipe | Schedule1F1B


class Pipeline(Layout):
    """Blocks dealt out over all processes in order."""

    whole = False
    alone = False
    stages = True

    def __init__(self, config: TrainConfig, parallel: Parallel) -> None:
        super().__init__(config, parallel)
        self._schedule: Schedule | None = None
        self._step: tuple[Sequence[Batch], Loss, Scaled]
        self._losses: dict[int, Tensor] = {}

    def place(self, model: nn.Module) -> nn.Module:
        if not isinstance(model, GPT):
            raise ConfigError(
                f"it is not known how to cut a {type(model).__name__} into stages. A pipeline is for task.kind = gpt; "
                "parallel.mode = ddp, zero1 and fsdp are for every task."
            )
        return Stage(model, self.parallel.rank, self.parallel.world_size, self.config.precision)

    def together(self, model: nn.Module) -> nn.Module:
        assert isinstance(model, Stage)
        return Chain(model, self.parallel)

    def gradients(
        self, model: nn.Module, batches: Sequence[Batch], loss: Loss, scaled: Scaled, *, reduce: bool = True
    ) -> Tensor:
        assert isinstance(model, Stage)
        batches = [batch.to(self.parallel.device) for batch in batches]
        if self._schedule is None:
            self._schedule = self._make_schedule(model, batches)
        self._step, self._losses = (batches, loss, scaled), {}
        target = torch.arange(len(batches))  # each micro-batch's part of it is its own number
        inputs = (torch.cat([batch.inputs for batch in batches]),) if model.is_first else ()
        self._schedule.step(*inputs, target=target if model.is_last else None, return_outputs=False)
        total = torch.zeros((), device=self.parallel.device)
        for micro_loss in self._losses.values():
            total += micro_loss
        dist.broadcast(total, src=self.parallel.world_size - 1)
        return total

    def _loss(self, output: Tensor, index: Tensor) -> Tensor:
        """On the last process, of one micro-batch."""
        batches, loss, scaled = self._step
        number = int(index)
        micro_loss = loss(Computed(output), batches[number])
        self._losses[number] = micro_loss.detach()
        return scaled(micro_loss)

    def _make_schedule(self, stage: Stage, batches: Sequence[Batch]) -> Schedule:
        # Shapes are given here, so that torch need not run the model once to find them out.
        inputs = batches[0].inputs
        hidden = torch.empty(*inputs.shape, stage.d_model, device="meta", requires_grad=True)
        logits = torch.empty(*inputs.shape, stage.vocabulary, device="meta", requires_grad=True)
        pipeline_stage = PipelineStage(
            stage,
            self.parallel.rank,
            self.parallel.world_size,
            self.parallel.device,
            input_args=inputs.to("meta") if stage.is_first else hidden,
            output_args=logits if stage.is_last else hidden,
        )
        kind = ScheduleGPipe if self.config.parallel.schedule == "gpipe" else Schedule1F1B
        return kind(pipeline_stage, len(batches), loss_fn=self._loss, scale_grads=False)


class Stage(GPT):
    """This process's blocks, under the names that they have in the whole model; bytes or activations in.

    The first stage embeds, the last gives logits in float32.
    """

    def __init__(self, model: GPT, index: int, stages: int, precision: PrecisionConfig) -> None:
        nn.Module.__init__(self)
        self.vocabulary, self.d_model = model.token.weight.shape
        self.is_first, self.is_last = index == 0, index == stages - 1
        self._autocast = build_precision(precision, next(model.parameters()).device).autocast
        if self.is_first:
            self.token, self.position, self.dropout = model.token, model.position, model.dropout
        numbered = list(enumerate(model.blocks))
        mine = numbered[len(numbered) * index // stages : len(numbered) * (index + 1) // stages]
        self.blocks = NumberedBlocks({str(number): block for number, block in mine})
        if self.is_last:
            self.norm, self.head = model.norm, model.head

    def forward(self, tokens: Tensor, shift: Tensor | None = None) -> Tensor:
        """``tokens`` are those only on the first stage, on others the activations of the stage before."""
        with self._autocast():
            x = self.embed(tokens, shift) if self.is_first else tokens
            for block in self.blocks:
                x = block(x)
            return self.logits(x).float() if self.is_last else x


class NumberedBlocks(nn.ModuleList):
    """Blocks under the numbers that they have in the whole model."""

    def __init__(self, blocks: dict[str, nn.Module]) -> None:
        super().__init__()
        self._modules.update(blocks)


class Chain(nn.Module):
    """All stages one after the other, without gradients: the logits of the whole model on every process."""

    def __init__(self, stage: Stage, parallel: Parallel) -> None:
        super().__init__()
        self.stage = stage
        self.parallel = parallel

    def forward(self, tokens: Tensor) -> Tensor:
        rank, last = self.parallel.rank, self.parallel.world_size - 1
        x = tokens
        if rank > 0:
            x = torch.empty(*tokens.shape, self.stage.d_model, device=tokens.device)
            dist.recv(x, src=rank - 1)
        x = self.stage(x)
        if rank < last:
            dist.send(x, dst=rank + 1)
            x = torch.empty(*tokens.shape, self.stage.vocabulary, device=tokens.device)
        dist.broadcast(x, src=last)
        return x


class Computed(nn.Module):
    """Stands in for a model whose output is known already, so that a task can take its loss."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self._output = output

    def forward(self, _inputs: Tensor) -> Tensor:
        return self._output
