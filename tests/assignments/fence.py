"""What keeps a submission away from the solutions, the grades and the machine: bubblewrap, or another user."""
import os
import pwd
import shutil
import site
import subprocess
import sys
from functools import partial
from pathlib import Path

from runner import Runner

ROOT = Path(__file__).resolve().parent.parent.parent
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", "/nix/store",
          "/gnu/store", "/sys/devices/system/cpu")


def bubblewrap(folder: Path) -> list[str]:
    """A command that runs another one which sees the system's programs, Python with its packages, and `folder`.

    All of it is read-only, and there are no other processes, no network and no devices but /dev/null and its like.
    """
    packages = [sys.prefix, sys.base_prefix, *site.getsitepackages(), site.getusersitepackages()]
    seen = dict.fromkeys([*SYSTEM, *packages, *map(os.path.realpath, packages)])
    inside = [path for path in seen if ROOT in Path(path).parents]  # an environment in the repository's folder
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for path in seen:
        command += ["--ro-bind-try", path, path] if path not in inside else []
    command += ["--tmpfs", str(ROOT)]  # it may stand below one of those
    for path in inside:
        command += ["--ro-bind-try", path, path]
    command += ["--dev", "/dev", "--proc", "/proc", "--ro-bind", str(folder), str(folder), "--chdir", str(folder)]
    for path in (str(ROOT), "/dev", "/"):
        command += ["--remount-ro", path]
    return command


def for_submissions(unsafe: bool, seconds: float):
    """A function without arguments that makes a Runner for a submission's question, and a sentence about it.

    Raises ValueError where nothing would hold a submission back, but for `unsafe`.
    """
    why = "bubblewrap (the program bwrap) is not installed"
    if shutil.which("bwrap"):
        tried = subprocess.run([*bubblewrap(Path(__file__).parent), sys.executable, "-c", "import torch"],
                               capture_output=True, text=True)
        if tried.returncode == 0:
            return partial(Runner, bubblewrap, seconds=seconds), "each question runs within bubblewrap"
        why = f"bubblewrap does not work here ({tried.stderr.strip()[-200:]})"
    if os.getuid() == 0 and not ROOT.stat().st_mode & 0o001:
        nobody = pwd.getpwnam("nobody")
        return (partial(Runner, seconds=seconds, user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[]),
                f"{why}; each question runs as the user nobody, who cannot read {ROOT}")
    danger = f"{why}, so a submission can read the solutions, change grades and harm this machine"
    if not unsafe:
        raise ValueError(f"{danger}; install bubblewrap, or give UNSAFE=1 if you trust every submission")
    return partial(Runner, seconds=seconds), danger
