"""The whole configuration of a training, validated: one definition for files, ``--set``, the launch form and errors.

    config = load_config("my.toml", ["optimizer.lr=3e-4", "clip.max_norm=none"])

``None`` means off; write ``none`` in a file or after ``--set``. Importing this package leaves torch alone.
"""

from trainer.config.form import FormField as FormField
from trainer.config.form import describe as describe
from trainer.config.form import differences as differences
from trainer.config.form import form_fields as form_fields
from trainer.config.form import to_overrides as to_overrides
from trainer.config.reading import from_record as from_record
from trainer.config.reading import load_config as load_config
from trainer.config.reading import require_left as require_left
from trainer.config.reading import require_named as require_named
from trainer.config.reading import with_values as with_values
from trainer.config.sections import PRESETS as PRESETS
from trainer.config.sections import TASK_KINDS as TASK_KINDS
from trainer.config.sections import AdapterConfig as AdapterConfig
from trainer.config.sections import AdversarialConfig as AdversarialConfig
from trainer.config.sections import CheckpointConfig as CheckpointConfig
from trainer.config.sections import ClipConfig as ClipConfig
from trainer.config.sections import CompileConfig as CompileConfig
from trainer.config.sections import CurriculumConfig as CurriculumConfig
from trainer.config.sections import EarlyStoppingConfig as EarlyStoppingConfig
from trainer.config.sections import EmaConfig as EmaConfig
from trainer.config.sections import EvaluationConfig as EvaluationConfig
from trainer.config.sections import FaultConfig as FaultConfig
from trainer.config.sections import FaultKind as FaultKind
from trainer.config.sections import GradientNoiseConfig as GradientNoiseConfig
from trainer.config.sections import LaunchConfig as LaunchConfig
from trainer.config.sections import LossConfig as LossConfig
from trainer.config.sections import ModelConfig as ModelConfig
from trainer.config.sections import MonitorConfig as MonitorConfig
from trainer.config.sections import OptimizerConfig as OptimizerConfig
from trainer.config.sections import ParallelConfig as ParallelConfig
from trainer.config.sections import PrecisionConfig as PrecisionConfig
from trainer.config.sections import ScheduleConfig as ScheduleConfig
from trainer.config.sections import Section as Section
from trainer.config.sections import SkipConfig as SkipConfig
from trainer.config.sections import TaskConfig as TaskConfig
from trainer.config.sections import TrainConfig as TrainConfig
