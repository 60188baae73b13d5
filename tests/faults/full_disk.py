"""`nst-batch` on a disk that is full but for some bytes, and what it leaves there.

`python -m tests.faults.full_disk FREE FOLDER ARGUMENTS...` runs in a mount namespace of its own
(`unshare -rm`), where FOLDER is a small file system that holds what FOLDER held. Prints as JSON the
exit code, the output, and the names of all files there at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SIZE = 256 << 20
FILLER = "filler"


def fill(folder: Path, free: int) -> None:
    """Leave so many bytes, and no more."""
    with (folder / FILLER).open("wb") as file:
        space = os.statvfs(folder)
        file.write(bytes(max(space.f_bavail * space.f_frsize - free, 0)))


def main() -> None:
    """Mount, fill, run, look."""
    free, folder, arguments = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(folder, Path(kept, "copy"), symlinks=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "tmpfs", str(folder)]
        subprocess.run(mount, check=True)
        shutil.copytree(Path(kept, "copy"), folder, dirs_exist_ok=True, symlinks=True)
    fill(folder, free)
    command = [sys.executable, "-m", "tests.faults.nst_batch", "", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    names.remove(FILLER)
    print(json.dumps({"code": done.returncode, "said": done.stderr, "files": names}))


if __name__ == "__main__":
    main()
