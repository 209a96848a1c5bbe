"""How a training is spread over processes. ``parallel.mode`` names the layout; torchrun starts the processes.

mode       each process holds                                 it sees            gradients
ddp        everything                                         its examples       averaged after backward
zero1      everything but the optimizer's state               its examples       averaged after backward
fsdp       a piece of every tensor, whole ones for moments    its examples       averaged and split in backward
tensor     a piece of attention and MLP, the rest whole       all examples       each its own piece
pipeline   some consecutive blocks                            all examples       each its own blocks

``fsdp`` with ``parallel.tensor_processes`` is both: layers are split within groups of neighbours and again over groups.

A layout is made by ``build_layout``; ``layout.py`` says what the loop asks of it, and there is a module per mode.
"""

from trainer.parallel.group import Parallel, start_parallel, stop_parallel
from trainer.parallel.layout import Layout, build_layout

__all__ = ["Layout", "Parallel", "build_layout", "start_parallel", "stop_parallel"]
