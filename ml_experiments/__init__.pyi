__version__: str

from .backends.base import RunHandle as RunHandle
from .backends.local.backend import LocalBackend as LocalBackend
from .backends.modal.backend import ModalBackend as ModalBackend
from .errors import BackendError as BackendError
from .errors import BudgetError as BudgetError
from .errors import ConfigError as ConfigError
from .errors import Error as Error
from .errors import SoftTimeout as SoftTimeout
from .execution.observer import Observer as Observer
from .experiment.base import Experiment as Experiment
from .experiment.base import ExperimentConfig as ExperimentConfig
from .experiment.context import current_run as current_run
from .runner.prepare import prepare_run as prepare_run
from .runner.run import run_experiment as run_experiment
from .runner.run import submit_experiment as submit_experiment
from .runner.run import submit_run as submit_run
from .runs.result import Artifact as Artifact
from .runs.result import ErrorKind as ErrorKind
from .runs.result import RunError as RunError
from .runs.result import RunFailedError as RunFailedError
from .runs.result import RunResult as RunResult
from .runs.result import RunStatus as RunStatus
from .runs.search import find_runs as find_runs
from .runs.search import load_run as load_run
from .runs.search import runs_dataframe as runs_dataframe
from .runs.spec import RunSpec as RunSpec
