"""The tables of the store's teachers: each a file of the logits of one network, beside its weights."""

from pathlib import Path

from edkd.teachers.cache_file import key_of
from edkd.teachers.store import Entry, listing


def path_of(store: Path, dataset: str, name: str, digest: str) -> Path:
    """The path of a table of a teacher's logits, by the digest of its key."""
    return Path(store) / dataset / f"{name}.{digest}.logits"


def of(entry: Entry) -> list[Path]:
    """The tables of a teacher's logits."""
    found = sorted(entry.path.parent.glob(f"{entry.name}.*.logits"))
    return [path for path in found if key_of(path).get("teacher") == entry.sha256]


def of_former_teachers(store: Path, in_use: set[str]) -> list[Path]:
    """The paths of tables of networks that are no longer in the store, and of their locks.

    `in_use`: the networks whose tables are left out, by the SHA-256 of their weights files.
    """
    present = {entry.path: entry.sha256 for entry in listing(store)}
    unused = []
    for table in sorted(Path(store).glob("*/*.logits")):
        network = key_of(table).get("teacher")
        teacher = table.with_name(f"{table.name.rsplit('.', 2)[0]}.pt")  # the name without the digest of the key
        # A teacher file without a listed entry has a damaged sidecar, which may be restored.
        former = present[teacher] != network if teacher in present else not teacher.exists()
        if former and network not in in_use:
            unused += [path for path in (table, Path(f"{table}.lock")) if path.exists()]
    return unused
