from fedlora.api import open_run as open_run, resume as resume, run as run, scenario as scenario
from fedlora.errors import FedloraError as FedloraError

__version__: str
