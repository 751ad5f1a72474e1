"""Build catch.gb from catch.c and crt0.s: python -m fox.agents.realtime.envs.rom.build IMAGE."""

import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
SIZE = 0x8000
TITLE = b"FOX CATCH"


def read_ihx(text: str) -> bytes:
    """The image that an Intel HEX file describes, 0xFF where it says nothing.

    Raises:
        ValueError: a line's checksum is wrong.
    """
    image = bytearray(b"\xff" * SIZE)
    for line in text.split():
        record = bytes.fromhex(line.removeprefix(":"))
        if sum(record) & 0xFF:
            raise ValueError(f"the checksum of the Intel HEX line {line} is wrong: build again")
        length, address, kind = record[0], int.from_bytes(record[1:3], "big"), record[3]
        if kind == 0:
            image[address : address + length] = record[4:-1]
    return bytes(image)


def with_header(image: bytes) -> bytes:
    """The image with a cartridge's header, but with zeros for the console maker's logo."""
    rom = bytearray(image)
    rom[0x104:0x134] = bytes(48)
    rom[0x134:0x143] = TITLE.ljust(15, b"\0")
    rom[0x143:0x14D] = bytes(10)
    rom[0x14A] = 1
    checksum = 0
    for byte in rom[0x134:0x14D]:
        checksum = (checksum - byte - 1) & 0xFF
    rom[0x14D] = checksum
    rom[0x14E:0x150] = (sum(rom[:0x14E]) + sum(rom[0x150:]) & 0xFFFF).to_bytes(2, "big")
    return bytes(rom)


def build() -> bytes:
    """Compile and link the game with sdcc (4.2.0 gives the shipped image byte for byte).

    Raises:
        FileNotFoundError: sdcc is not installed.
        subprocess.CalledProcessError: a source does not compile; the compiler says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        for command in (
            f"sdasgb -o crt0.rel {SOURCES / 'crt0.s'}",
            f"sdcc -msm83 -c -o catch.rel {SOURCES / 'catch.c'}",
            "sdcc -msm83 --no-std-crt0 --code-loc 0x200 --data-loc 0xC000 -o catch.ihx "
            "crt0.rel catch.rel",
        ):
            subprocess.run(command.split(" "), cwd=folder, check=True)
        return with_header(read_ihx((Path(folder) / "catch.ihx").read_text(encoding="ascii")))


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(build())
