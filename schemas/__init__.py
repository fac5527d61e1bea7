"""What an option is, once. Standard library only."""

from schemas.config import Option, TrainConfig, from_flat, read, read_value, table, to_flat, write
from schemas.problems import ConfigError, Problem, error, errors, nearest

__all__ = [
    "ConfigError",
    "Option",
    "Problem",
    "TrainConfig",
    "error",
    "errors",
    "from_flat",
    "nearest",
    "read",
    "read_value",
    "table",
    "to_flat",
    "write",
]
