"""Reads a submission, an archive or a folder, in a process with limits: whatever stands in it, the grader goes on.

    python unpack.py PATH FILE...     # as JSON: {"files": {FILE: content}, "others": [names]}
"""
import json
import os
import resource
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

SECONDS, MEMORY = 10, 1 << 30  # of processor time; bytes, so a bomb ends the process and not the machine
MOST_BYTES, MOST_FILES = 1 << 20, 5000  # of one file; of names


def read_submission(path: Path, wanted: list[str]) -> tuple[dict[str, bytes], list[str]]:
    """({name: content} of the wanted files that are there, other files' names).

    Raises FileNotFoundError where nothing is there, ValueError where it cannot be read.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{path} does not exist; SUBMISSION is an archive or a folder")
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is neither a file nor a folder; hand in what make submission wrote")
    try:
        done = subprocess.run([sys.executable, __file__, path, *wanted], capture_output=True, timeout=6 * SECONDS)
        found = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        raise ValueError(f"{path} cannot be read within {SECONDS} seconds and 1 GiB; "
                         "hand in what make submission wrote") from None
    if "error" in found:
        raise ValueError(f"{path} is no archive ({found['error']}); hand in what make submission wrote")
    return {name: text.encode("latin-1") for name, text in found["files"].items()}, found["others"]


def members_of(path: Path):
    """(name, size, a function that opens it) of all regular files in a folder, a zip or a tar of any kind."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for file in (Path(folder, name) for name in sorted(names)):
                if file.is_file() and not file.is_symlink():
                    yield file.relative_to(path).as_posix(), file.stat().st_size, lambda: open(file, "rb")
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    yield member.filename, member.file_size, lambda: archive.open(member)
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    yield member.name, member.size, lambda: archive.extractfile(member)


def read(path: Path, wanted: list[str]) -> dict:
    """What a submission holds of the wanted files, whatever folders are around them. Hidden and large files are not."""
    kept, names = {}, []
    for name, size, open_it in members_of(path):
        name = name.replace("\\", "/").removeprefix("./")
        if size <= MOST_BYTES and not any(part.startswith((".", "__")) for part in name.split("/")):
            names.append(name)
            if Path(name).name in map(os.path.basename, wanted):
                with open_it() as file:
                    kept[name] = file.read(MOST_BYTES + 1)[:MOST_BYTES].decode("latin-1")
        if len(names) > MOST_FILES:
            break
    found = {}
    for file in wanted:  # under its whole name or, if handed in without folders, its own
        matches = ([name for name in kept if f"/{name}".endswith(f"/{file}")] or
                   [name for name in kept if os.path.basename(name) == os.path.basename(file)])
        if matches:
            outermost = min(matches, key=lambda name: name.count("/"))
            found[file] = kept[outermost]
            names.remove(outermost)
    return {"files": found, "others": names[:20]}


def main():
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        found = read(Path(sys.argv[1]), sys.argv[2:])
    except Exception as error:  # archives are broken in more ways than their libraries name
        found = {"error": " ".join(str(error).split())[:100] or type(error).__name__}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
