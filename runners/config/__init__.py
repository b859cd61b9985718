"""What a user asks for: the frozen, validated configuration of a sweep."""

from .checks import check_seed
from .evaluation import Evaluation
from .execution import Execution
from .methods import MethodSpec, parse_method, split_methods
from .reading import make_config, merge, nest, read_yaml
from .sweep import SweepConfig
from .training import RecoverOverrides, Training, TrainOverrides

__all__ = [
    "Evaluation",
    "Execution",
    "MethodSpec",
    "RecoverOverrides",
    "SweepConfig",
    "TrainOverrides",
    "Training",
    "check_seed",
    "make_config",
    "merge",
    "nest",
    "parse_method",
    "read_yaml",
    "split_methods",
]
