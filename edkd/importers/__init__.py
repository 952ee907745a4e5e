"""Read results and networks of other code bases safely from folders and archives; results become journals of runs.

No value is invented: what a file lacks is left out, or the file is refused with the reason.
"""

from edkd.importers import archive, mdistiller, repdistiller
from edkd.importers.record import Outcome, record
from edkd.importers.results import Result

__all__ = ["Outcome", "Result", "archive", "mdistiller", "record", "repdistiller"]
