#!/usr/bin/env python3
"""Makes fuzz/seeds anew: LUKS headers by cryptsetup, and what real NBD clients say to `hostveil serve`.

Usage: fuzz/make-seeds.py [HOSTVEIL [TARGET...]]

HOSTVEIL is the program to serve with (default: target/debug/hostveil). Without targets all are made that
are made here; the others' seeds are written by hand. Needs cryptsetup, qemu-img, qemu-io, nbdinfo, nbdcopy
and nbdsh. The result differs from run to run in salts, UUIDs and cookies.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
SEEDS = FUZZ / "seeds"
HOSTVEIL = sys.argv[1] if len(sys.argv) > 1 else str(FUZZ.parent / "target/debug/hostveil")
# Longer recordings are cut off: what follows is more of the same.
LONGEST = 2 << 10
GO, EXPORT_NAME = 7, 1
TARGETS = ["nbd_handshake", "nbd_transmission", "luks1_header", "luks2_header", "luks2_json", "recovery_key",
           "sealed_superblock", "sealed_journal", "sealed_page", "sealed_engine"]
WANTED = sys.argv[2:] or TARGETS


def run(*command, check=True, **options):
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    # nbdsh takes the first python3, and only the system's has the module.
    options["env"] = os.environ | {"PATH": "/usr/bin:/usr/sbin:" + os.environ["PATH"]}
    result = subprocess.run(command, capture_output=True, timeout=60, **options)
    if check and result.returncode:
        sys.exit(f"{command}: {result.stderr.decode()}")
    return result


def seed(target, name, content):
    if target not in WANTED:
        return
    (SEEDS / target).mkdir(parents=True, exist_ok=True)
    (SEEDS / target / name).write_bytes(content)


# NBD


class Proxy:
    """Takes one connection after the other to a server, and keeps what the clients said."""

    def __init__(self, path, server):
        self.said, self.server = [], server
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.server)
            said = bytearray()
            self.said.append(said)
            threading.Thread(target=self.copy, args=(client, server, said), daemon=True).start()
            threading.Thread(target=self.copy, args=(server, client, bytearray()), daemon=True).start()

    @staticmethod
    def copy(source, sink, kept):
        try:
            while data := source.recv(65536):
                kept += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def handshake_len(said):
    """Where the handshake ends: behind the last option, which is GO or EXPORT_NAME."""
    at = 4
    while said[at : at + 8] == b"IHAVEOPT":
        option = int.from_bytes(said[at + 8 : at + 12])
        at += 16 + int.from_bytes(said[at + 12 : at + 16])
        if option == EXPORT_NAME:
            break
    return at


def nbd_seeds(dir):
    disk, key, data = dir / "disk.img", dir / "key", dir / "data"
    key.write_bytes(b"not secret at all")
    data.write_bytes(bytes(65536) + b"data" * 4096 + bytes((1 << 20) - 65536 - 16384))
    run(HOSTVEIL, "format", "--size", "1M", "--key-file", key, "--pbkdf", "pbkdf2", disk)
    sock, heard = str(dir / "server.sock"), str(dir / "proxy.sock")
    server = subprocess.Popen(
        [HOSTVEIL, "serve", "--json", "--discard", "unmap", "--name", "disk", "--key-file", key, "--socket", sock, disk],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        json.loads(server.stdout.readline())
        proxy = Proxy(heard, sock)
        uri = f"nbd+unix:///disk?socket={heard}"
        sessions = {
            "nbdinfo": ["nbdinfo", uri],
            "nbdinfo-map": ["nbdinfo", "--map", uri],
            "nbdinfo-list": ["nbdinfo", "--list", uri],
            "nbdinfo-no-such-export": ["nbdinfo", f"nbd+unix:///other?socket={heard}"],
            "qemu-img-info": ["qemu-img", "info", uri],
            "qemu-img-map": ["qemu-img", "map", "--output=json", uri],
            "qemu-io": ["qemu-io", "-f", "raw", uri]
            + [w for c in ("write -P 7 512 1k", "write -f 0 1", "write -z 4k 4k", "write -zu 8k 4k", "discard 0 64k", "flush", "read 4k 8k", "map") for w in ("-c", c)],
            "nbdcopy-write": ["nbdcopy", "--connections=1", "--flush", str(data), uri],
            "nbdcopy-read": ["nbdcopy", "--connections=1", uri, str(dir / "copy")],
            "nbdsh-every-command": ["nbdsh", "-c", NBDSH.replace("URI", uri)],
            "nbdsh-simple": ["nbdsh", "-c", NBDSH_SIMPLE.replace("URI", uri)],
            "nbdsh-export-name": ["nbdsh", "-c", EXPORT_NAME_ONLY.replace("PATH", heard)],
            "nbdsh-option-mode": ["nbdsh", "-c", OPTION_MODE.replace("PATH", heard)],
        }
        for name, command in sessions.items():
            proxy.said.clear()
            run(*command, check="no-such" not in name and "list" not in name)
            # A program's first connections can be attempts; all of them are worth keeping.
            for number, said in enumerate(proxy.said):
                session_seed(name if len(proxy.said) == 1 else f"{name}-{number + 1}", bytes(said))
    finally:
        server.terminate()
        server.wait()


NBDSH = """
h.add_meta_context("base:allocation")
h.connect_uri("URI")
h.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_FUA)
h.zero(4096, 512, nbd.CMD_FLAG_NO_HOLE)
try: h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO)
except nbd.Error: pass
h.trim(4096, 0)
h.cache(4096, 0)
h.flush()
h.pread(512, 100)
h.pread_structured(512, 100, lambda *args: 0, nbd.CMD_FLAG_DF)
h.block_status(1 << 20, 0, lambda *args: 0, nbd.CMD_FLAG_REQ_ONE)
h.set_strict_mode(0)
for wrong in (lambda: h.pread(512, 1 << 20), lambda: h.trim(512, (1 << 63) - 512), lambda: h.pwrite(b"y" * 512, (1 << 20) - 100)):
    try: wrong()
    except nbd.Error: pass
h.shutdown()
"""
NBDSH_SIMPLE = """
h.set_request_structured_replies(False)
h.connect_uri("URI")
h.pread(512, 100)
h.pwrite(b"z" * 100, 7)
h.shutdown()
"""
EXPORT_NAME_ONLY = """
h.set_handshake_flags(0)
h.set_export_name("disk")
h.connect_unix("PATH")
h.pread(512, 0)
h.shutdown()
"""
OPTION_MODE = """
h.set_opt_mode(True)
h.set_export_name("other")
h.add_meta_context("base:")
h.connect_unix("PATH")
try: h.opt_list(lambda *args: 0)
except nbd.Error: pass
try: h.opt_info()
except nbd.Error: pass
h.set_export_name("disk")
h.set_full_info(True)
h.opt_info()
h.opt_list_meta_context(lambda *args: 0)
h.opt_abort()
"""


def session_seed(name, said):
    end = handshake_len(said)
    # Settings: listing on; all at once, and in pieces.
    seed("nbd_handshake", name, b"\x01\x00" + said[:LONGEST])
    # The same by TLS: client flags and STARTTLS in plaintext, the rest after it; all at once it ends there.
    starttls = b"IHAVEOPT" + (5).to_bytes(4) + bytes(4)
    seed("nbd_handshake", f"{name}-by-tls", b"\x05\x02" + said[:4] + starttls + said[4:LONGEST])
    requests = said[end:]
    if requests:
        structured = b"IHAVEOPT\x00\x00\x00\x08" in said[:end]
        extended = b"IHAVEOPT\x00\x00\x00\x0b" in said[:end]
        # Settings: a writable export of 1 MiB with a context; three extents.
        settings = 0b100010 if extended else 0b11 if structured else 0
        extents = b"\x03" + b"".join(bytes([state]) + length.to_bytes(8) for state, length in ((3, 65536), (0, 16384), (3, 966656)))
        seed("nbd_transmission", name, bytes([settings]) + extents + requests[:LONGEST])


# LUKS


def luks1_seeds(dir):
    cheap = ["--pbkdf-force-iterations", "1000"]
    (dir / "old").write_bytes(b"key")
    (dir / "new").write_bytes(b"another")
    image = dir / "luks1.img"
    volumes = {
        "sha1-256": ["--hash", "sha1", "--key-size", "256"],
        "sha512-256": ["--hash", "sha512", "--key-size", "256"],
        "aes-cbc-ripemd160": ["--hash", "ripemd160", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"],
        "xts-plain": ["--cipher", "aes-xts-plain", "--key-size", "512"],
        "sha256-512": ["--hash", "sha256", "--key-size", "512"],
    }
    for name, options in volumes.items():
        image.write_bytes(bytes(8 << 20))
        made = run("cryptsetup", "luksFormat", "--type", "luks1", "--batch-mode", "--disable-locks", *cheap, *options, "--key-file", dir / "old", image, check=False)
        if made.returncode:
            print(f"luks1 {name}: not made here: {made.stderr.decode().strip()}", file=sys.stderr)
        else:
            luks1_seed(name, image)
    run("cryptsetup", "luksAddKey", "--batch-mode", "--disable-locks", *cheap, "--key-file", dir / "old", image, dir / "new")
    luks1_seed("two-slots", image)
    run("qemu-img", "create", "-q", "-f", "luks", "--object", f"secret,id=s,file={dir / 'old'}", "-o", "key-secret=s,iter-time=10", image, "64k")
    luks1_seed("qemu-img", image)


def luks1_seed(name, image):
    """What follows magic and version."""
    with open(image, "rb") as file:
        seed("luks1_header", name, file.read(592)[8:])


def luks2_seeds(dir):
    cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    argon2 = ["--pbkdf-force-iterations", "4", "--pbkdf-memory", "64", "--pbkdf-parallel", "1"]
    volumes = {
        "pbkdf2": [*cheap, "--key-size", "512"],
        "argon2id": ["--pbkdf", "argon2id", *argon2, "--key-size", "512", "--sector-size", "4096"],
        "argon2i": ["--pbkdf", "argon2i", *argon2, "--key-size", "512", "--label", "a label", "--subsystem", "a subsystem"],
        "aes-128": [*cheap, "--key-size", "256"],
        "aes-cbc-sha1": [*cheap, "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", "--hash", "sha1"],
        "header-of-32-kib": [*cheap, "--key-size", "512", "--luks2-metadata-size", "32k"],
    }
    for name, options in volumes.items():
        image = dir / f"{name}.img"
        with open(image, "wb") as file:
            file.truncate(20 << 20)
        made = run("cryptsetup", "luksFormat", "--type", "luks2", "--batch-mode", "--disable-locks", *options, image, input=b"key", check=False)
        if made.returncode:
            print(f"{name}: not made here: {made.stderr.decode().strip()}", file=sys.stderr)
            continue
        luks2_seed(name, image)
    (dir / "new").write_bytes(b"another")
    (dir / "old").write_bytes(b"key")
    ours = dir / "hostveil.img"
    run(HOSTVEIL, "format", "--size", "1M", "--key-file", dir / "old", "--pbkdf", "pbkdf2", ours)
    luks2_seed("hostveil", ours)
    image = dir / "pbkdf2.img"
    run("cryptsetup", "luksAddKey", "--batch-mode", "--disable-locks", *cheap, "--key-file", dir / "old", image, dir / "new")
    run("cryptsetup", "config", "--key-slot", "1", "--priority", "prefer", image)
    run("cryptsetup", "token", "import", "--json-file", "-", image, input=b'{"type":"somebody-elses","keyslots":["1"],"extra":[1,{"x":null}]}')
    luks2_seed("two-slots-and-a-token", image)
    begun = run("cryptsetup", "reencrypt", "--encrypt", "--init-only", "--type", "luks2", "--batch-mode", "--disable-locks", *cheap, "--key-size", "512", "--reduce-device-size", "8M", plain(dir), input=b"key", check=False)
    if begun.returncode:
        print(f"reencrypt: not made here: {begun.stderr.decode().strip()}", file=sys.stderr)
    else:
        luks2_seed("encryption-begun", plain(dir))


def plain(dir):
    image = dir / "plain.img"
    if not image.exists():
        image.write_bytes(bytes(40 << 20))
    return image


def luks2_seed(name, image):
    with open(image, "rb") as file:
        start = file.read(8 << 20)
    size = int.from_bytes(start[8:16])
    first, second = start[:size], start[size : 2 * size]
    texts = [copy[4096:].rstrip(b"\0") for copy in (first, second)]
    seed("luks2_json", f"{name}.json", texts[0])
    both = texts[0] if texts[0] == texts[1] else b"\xff".join(texts)
    seed("luks2_header", f"{name}.parts", b"\x01" + first[:512] + second[:512] + both)
    if name in ("pbkdf2", "two-slots-and-a-token"):
        seed("luks2_header", f"{name}.raw", b"\x00" + start[: 2 * size])


# Recovery keys

KNOWN = "cccbcdce-cfcgchci-cjckclcn-crctcucv-bcbbbdbe-bfbgbhbi-bjbkblbn-brbtbubv-dubjbrif"


def recovery_key_seeds():
    typed = {
        "canonical": KNOWN,
        "capitals-and-spaces": KNOWN.upper().replace("-", "  ") + "\n",
        "no-dashes": KNOWN.replace("-", ""),
        "one-wrong-letter": "v" + KNOWN[1:],
        "swapped-neighbours": KNOWN[:10] + KNOWN[11] + KNOWN[10] + KNOWN[12:],
        "two-wrong-letters": "v" + KNOWN[1:-1] + "c",
        "seven-letters-in-a-group": KNOWN[:-1],
        "systemds-eight-groups": KNOWN[:71],
        "passphrase": "correct horse battery staple",
        "nine-words": "one-two-three-four-five-six-seven-eight-nine",
        "not-text": "\udcff" * 72,
        "nothing": "",
    }
    for name, text in typed.items():
        seed("recovery_key", name, b"\x00" + text.encode(errors="surrogateescape"))
    seed("recovery_key", "fresh-key", b"\x01" + bytes(range(32)))
    seed("recovery_key", "fresh-key-mistyped", b"\x01" + bytes(range(32)) + b"\x08-\x09v\x0a\xff")


# Sealed volumes: what fuzz/src/sealed_*.rs read


def sealed_superblock_seeds():
    def change(slots, at, value):
        places = ((slot * 4096 + at + n, byte) for slot in slots for n, byte in enumerate(value))
        return b"".join(place.to_bytes(2) + bytes([byte]) for place, byte in places)

    latest, older = (0, 1), (2, 3)
    unsigned = {
        "genuine": b"",
        "latest-torn-twice": change((0,), 4000, b"\1") + change((1,), 20, b"\1"),
        "all-torn": change(latest + older, 300, b"\1"),
    }
    signed = {
        "grown-and-signed": change(latest, 88, (400).to_bytes(8, "little")),
        "another-epoch-signed": change(latest, 224, (9).to_bytes(4, "little")),
        "root-to-nowhere-signed": change(latest, 112, (5 << 44).to_bytes(8, "little") + (386).to_bytes(8, "little")),
    }
    for choice, inputs in ((b"\0", unsigned), (b"\1", signed)):
        for name, changes in inputs.items():
            seed("sealed_superblock", name, choice + changes)


def sealed_journal_seeds():
    def block(commit, *entries, told=b""):
        return bytes([commit | (2 if told else 0) | len(entries) << 4]) + b"".join(entries) + told

    def data(number):
        return bytes([0, number])

    def moved(number, lba, place):
        return bytes([1, number, lba, place])

    run = b"\2" + (30).to_bytes(2) + (40).to_bytes(2)
    groups = block(1, data(0), data(1)) + block(0, data(2)) + block(1, run, data(3)) + block(1, data(4))
    durable = block(1, moved(1, 5, 1), told=b"\1\0\1\0" + (2).to_bytes(8, "little"))
    inputs = {
        "nothing": b"\0",
        "three-groups": b"\0" + groups,
        "a-group-that-does-not-end": b"\0" + block(1, data(0)) + block(0, data(1), data(2)),
        "data-of-another-place": b"\0" + block(1, data(0)) + block(1, moved(1, 5, 1)) + block(1, data(2)),
        "a-whole-ring": b"\0" + b"".join(block(1, data(n % 8)) for n in range(16)),
        "known-to-be-durable": b"\0" + block(1, data(0)) + durable,
        "behind-a-fence": b"\2" + (2).to_bytes(8) + b"\0" + block(1, data(0)) + block(1, data(1)),
        "broken-chain": b"\0" + block(1, data(0)) + block(5, data(1)) + block(1, data(2)),
    }
    for name, content in inputs.items():
        seed("sealed_journal", name, content)


def sealed_page_seeds():
    pages = ["m0", "m1", "m2", "map", "b0", "b1", "b2", "bitmap"]

    def volume(choices=0, **changes):
        listed = (changes.get(page, []) for page in pages)
        return bytes([choices]) + b"".join(bytes([len(of)]) + b"".join(of) for of in listed)

    inputs = {
        "whole": volume(),
        "some-holes": volume(m0=[b"\0\0"], map=[b"\2\0"]),
        "pages-swapped": volume(map=[b"\0\1\1", b"\1\1\0"]),
        "wrong-bits": volume(b0=[(3).to_bytes(2), (100).to_bytes(2)]),
        "roots-that-are-leaves": volume(3),
    }
    for name, content in inputs.items():
        seed("sealed_page", name, content)


def sealed_engine_seeds():
    flush, checkpoint, kill, close, keep, back = (bytes([n]) for n in (4, 5, 6, 7, 9, 10))
    look, check = b"\x0d", b"\x0e"

    def write(first, count):
        return b"\0" + first.to_bytes(2) + bytes([count - 1])

    def discard(first, count):
        return b"\3" + first.to_bytes(2) + bytes([count - 1])

    def change(block, offset, bits):
        return b"\x08" + block.to_bytes(2) + bytes([offset, bits])

    def one_back(block):
        return b"\x0b" + block.to_bytes(2)

    def fault(left, kinds):
        return b"\x0c" + bytes([left, kinds - 1])

    def grow(by):
        return b"\x0f" + by.to_bytes(2)

    everything = b"".join(write(20 * n, 20) for n in range(15))
    lives = {
        "life": write(0, 10) + flush + write(5, 3) + checkpoint + discard(2, 5) + flush + close + check
        + write(100, 20) + kill + grow(99) + write(350, 9) + flush + check,
        "rollback": write(0, 10) + flush + keep + write(0, 10) + flush + back + kill + write(20, 4) + flush + close,
        "changes": write(0, 20) + flush + checkpoint + write(30, 20) + flush + change(9, 3, 1) + look
        + change(20, 200, 8) + kill + change(2, 0, 255) + kill + check,
        "one-block-back": write(0, 20) + flush + checkpoint + keep + write(0, 20) + flush + checkpoint
        + one_back(7) + one_back(9) + one_back(12) + kill + check,
        "failing": write(0, 10) + flush + fault(0, 2) + write(3, 4) + flush + fault(0, 4) + write(5, 5) + flush
        + kill + fault(3, 1) + kill + fault(2, 2) + checkpoint + kill + check,
        "full": everything + flush + everything + close + check,
        "torn-while-mounting": write(0, 20) + flush + b"".join(fault(n, 2) + kill for n in range(4)) + check,
    }
    for choice, name in ((b"\0", "plain"), (b"\1", "anchored")):
        for life, steps in lives.items():
            seed("sealed_engine", f"{name}-{life}", choice + steps)


def main():
    for target in WANTED:
        shutil.rmtree(SEEDS / target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as dir:
        for prefix, make in (("nbd", nbd_seeds), ("luks1", luks1_seeds), ("luks2", luks2_seeds)):
            if any(target.startswith(prefix) for target in WANTED):
                make(Path(dir))
    recovery_key_seeds()
    sealed_superblock_seeds()
    sealed_journal_seeds()
    sealed_page_seeds()
    sealed_engine_seeds()


if __name__ == "__main__":
    main()
