"""A run on disk: written by :mod:`writer`, read by :mod:`reader`; FORMAT.md beside this file is the specification."""

from monitor.runfile.downsample import HeatReduced as HeatReduced
from monitor.runfile.downsample import Reduced as Reduced
from monitor.runfile.downsample import heat as heat
from monitor.runfile.downsample import min_max as min_max
from monitor.runfile.ranks import RankTable as RankTable
from monitor.runfile.ranks import rank_table as rank_table
from monitor.runfile.reader import Attempt as Attempt
from monitor.runfile.reader import Checkpoint as Checkpoint
from monitor.runfile.reader import Event as Event
from monitor.runfile.reader import LandscapeSample as LandscapeSample
from monitor.runfile.reader import Run as Run
from monitor.runfile.reader import open_run as open_run
from monitor.runfile.store import RunState as RunState
from monitor.runfile.store import RunSummary as RunSummary
from monitor.runfile.store import list_runs as list_runs
from monitor.runfile.store import run_state as run_state
from monitor.runfile.writer import RankWriter as RankWriter
from monitor.runfile.writer import begin_attempt as begin_attempt
from monitor.runfile.writer import create_run as create_run
from monitor.runfile.writer import write_exit as write_exit
