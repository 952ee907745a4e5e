"""Which file system a path lies on: SQLite's locks and its write-ahead log do not work over a network."""

import re
from pathlib import Path

_NETWORK = {
    *("afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "panfs", "pvfs2", "smb3", "smbfs"),
    *("fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "wekafs"),
}
_MOUNTS = Path("/proc/self/mountinfo")


def network_filesystem(path: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of the network file system that holds `path` (which need not exist); None for a local or unknown one.

    `mounts` is the kernel's mount table, proc(5). Without one, as on systems other than Linux, the result is None.
    """
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return None
    holder, kind = Path("/"), ""
    resolved = path.resolve()
    for line in lines:
        place, _, about = line.partition(" - ")
        where = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place.split()[4]))
        # Where several mounts cover one place, the last one counts.
        if (resolved == where or where in resolved.parents) and len(where.parts) >= len(holder.parts):
            holder, kind = where, about.split()[0]
    return kind if kind in _NETWORK else None
