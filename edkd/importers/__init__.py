"""Results and networks of other code bases: their folders and archives, read safely, as journals of runs beside ours.

What a file does not say is not made up: it is left out, or the file is refused with the reason.
"""

from edkd.importers import archive, mdistiller, repdistiller
from edkd.importers.record import Outcome, record
from edkd.importers.results import Result

__all__ = ["Outcome", "Result", "archive", "mdistiller", "record", "repdistiller"]
