"""Sweeps: many ordinary runs whose configurations differ in a few fields, chosen by a sampler and judged by one metric.

    sweep = begin(plan, "runs")                  # at once: a process of its own starts the trials and looks after them
    sweep = open_sweep("runs", sweep.id)         # what has come of them so far; the page and the command line read this
    ask_to_stop(sweep)                           # running trials save a checkpoint and end; go_on(sweep) goes on

A trial is a run like any other, with a page, a diagnosis and checkpoints. A sweep itself is a folder
``<runs>/.sweeps/<id>`` with its plan and one line for each thing that happened; torch stays out.
"""

from trainer.sweep.begin import ask_to_stop as ask_to_stop
from trainer.sweep.begin import begin as begin
from trainer.sweep.begin import go_on as go_on
from trainer.sweep.plan import GOALS as GOALS
from trainer.sweep.plan import Plan as Plan
from trainer.sweep.plan import make_plan as make_plan
from trainer.sweep.record import Sweep as Sweep
from trainer.sweep.record import Trial as Trial
from trainer.sweep.record import list_sweeps as list_sweeps
from trainer.sweep.record import open_sweep as open_sweep
from trainer.sweep.samplers import PRUNERS as PRUNERS
from trainer.sweep.samplers import SAMPLERS as SAMPLERS
