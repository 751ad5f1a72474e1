"""What the processes of a session are, and what they have mapped: on Linux."""

from contextlib import suppress
from pathlib import Path


def session(number):
    """The processes of a session: the first, its workers, and what multiprocessing starts."""
    members = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            if int(of) == number and state != "Z":
                members.append(int(folder.name))
    return members


def mappings(process):
    """What a process has mapped; nothing if it has just ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/maps").read_text()
    return ""
