"""What lies beside the teachers of a store and is read by no run: tables set aside, and tables of former teachers."""

from pathlib import Path

from edkd.teachers import store
from edkd.teachers.cache_file import key_of


def set_aside(folder: Path) -> list[Path]:
    """Tables that were truncated or held something else, and were begun anew."""
    return sorted(folder.glob("*/*.logits.set-aside-*"))


def of_former_teachers(folder: Path, in_use: set[str]) -> list[Path]:
    """Tables of networks that are no longer in the store, each with its lock.

    `in_use` are networks whose tables are left out, by the SHA-256 of their weights files.
    """
    present = {entry.path: entry.sha256 for entry in store.listing(folder)}
    unused = []
    for table in sorted(folder.glob("*/*.logits")):
        network = key_of(table).get("teacher")
        teacher = table.with_name(f"{table.name.rsplit('.', 2)[0]}.pt")  # before the digest of the key
        # A teacher that is there and not listed has a damaged sidecar, which may be restored.
        former = present[teacher] != network if teacher in present else not teacher.exists()
        if former and network not in in_use:
            unused += [path for path in (table, Path(f"{table}.lock")) if path.exists()]
    return unused
