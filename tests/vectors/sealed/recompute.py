#!/usr/bin/env python3
"""The test vectors of the sealed format, computed from docs/sealed-format.md and docs/sealed-keys.md alone.

Shares no code with hostveil: that it comes to the same bytes shows that the two pages suffice. Without
arguments it compares what it computes with the files beside it and with the block of vectors at the end of
docs/sealed-keys.md; with --write it writes the files. Needs the package `cryptography`, 44 or later.
"""

import argparse
import hashlib
import hmac
import pathlib
import struct
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

HERE = pathlib.Path(__file__).resolve().parent
KEYS_PAGE = HERE.parents[2] / "docs" / "sealed-keys.md"
BLOCK = 4096


def counting(first, count):
    return bytes(range(first, first + count))


VOLUME_KEY = counting(0x00, 32)
UUID = bytes.fromhex("00112233445566778899aabbccddeeff")
PASSPHRASE = b"correct horse"
# Epoch 4 sealed what the trees have, epoch 5 what the journal has.
SALTS = {4: counting(0xC0, 32), 5: counting(0x20, 32)}
HEADER_SEQUENCE = 1
STRICT = 1

# Layout parameters, and what follows from them.
LOGICAL_BLOCKS, GROUP_SHIFT, GROUP_SPARE, JOURNAL_BLOCKS, EPOCHS = 128, 7, 8, 16, 64
TABLE = EPOCHS // 64
RING = 256 + TABLE
ALIGNMENT = min(256, 1 << GROUP_SHIFT)
GROUP = -(-(RING + JOURNAL_BLOCKS + TABLE) // ALIGNMENT) * ALIGNMENT
MAP_HOMES = [max(1, (1 << GROUP_SHIFT) >> 7 * (level + 1)) for level in range(5)]
BITMAP_HOMES = -(-((1 << GROUP_SHIFT) + GROUP_SPARE) // 32768)
BITMAP = GROUP + 2 * sum(MAP_HOMES)
DATA = BITMAP + 2 * BITMAP_HOMES + 2 * 3


# Keys

def mac(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def hkdf_expand(prk, info, length):
    out, last, number = b"", b"", 1
    while len(out) < length:
        last = mac(prk, last, info, bytes([number]))
        out, number = out + last, number + 1
    return out[:length]


def hkdf(salt, secret, info, length):
    return hkdf_expand(mac(salt, secret), info, length)


def prk_of(suite):
    return mac(UUID + struct.pack("<II", 1, suite), VOLUME_KEY)


def key(name, suite=1):
    return hkdf_expand(prk_of(suite), b"hostveil/1 " + name, 32)


def epoch_key(epoch, salt, suite=1):
    return key(b"epoch" + struct.pack("<I", epoch) + salt, suite)


# Sealing

def version_of(epoch, counter):
    return epoch << 44 | counter


def associated(kind, level, index):
    return struct.pack("<BB6xQ", kind, level, index) + UUID


def seal(kind, version, aad, plain, suite=1, salt=None):
    epoch = version >> 44
    cipher = {1: AESGCM, 2: AESGCMSIV}[suite](epoch_key(epoch, salt or SALTS[epoch], suite))
    sealed = cipher.encrypt(struct.pack("<IQ", kind, version), plain, aad)
    return sealed[:-16], sealed[-16:]


def pointer(version, place, tag):
    return struct.pack("<QQ", version, place) + tag


def sealed_block(kind, version, level, index, place, plain):
    """What lies at `place`, and the pointer to it."""
    assert len(plain) == BLOCK
    sealed, tag = seal(kind, version, associated(kind, level, index), plain)
    return sealed, pointer(version, place, tag)


# Header, key slot, anchor

def key_slot():
    salt, wrap_salt = counting(0x40, 32), counting(0x60, 32)
    info = b"hostveil/1 slot" + UUID + struct.pack("<IBB", 1, 1, 0)
    kek = Argon2id(salt=salt, length=32, iterations=1, lanes=1, memory_cost=8).derive(PASSPHRASE)
    both = hkdf(wrap_salt, kek, info, 64)
    wrapped = AESGCM(both[:32]).encrypt(bytes(12), VOLUME_KEY, info)
    slot = struct.pack("<B3xIII", 1, 8, 1, 1) + salt + wrap_salt + wrapped + mac(both[32:], info, wrapped)
    return slot.ljust(256, b"\0")


def header():
    start = b"HVSEALED" + struct.pack("<II", 1, 1) + UUID
    start += struct.pack("<QIII", HEADER_SEQUENCE, 1, STRICT, 0)
    body = (start.ljust(1024, b"\0") + key_slot()).ljust(4064, b"\0")
    return body + mac(key(b"hdr-mac"), body)


def anchor(generation, sequence, tag):
    body = b"HVANCHOR" + struct.pack("<II", 1, 0) + UUID + struct.pack("<QQ", generation, sequence) + tag
    return body + mac(key(b"anchor-mac"), body)


# Superblock, epoch table, journal

def superblock(generation, map_root, bitmap_root, cut, fence, epoch):
    body = b"HVSUPER\n" + struct.pack("<II", 1, 0) + UUID + struct.pack("<QQ", generation, 0)
    body += struct.pack("<Q", HEADER_SEQUENCE) + hashlib.sha256(header()).digest()
    body += struct.pack("<QIIII", LOGICAL_BLOCKS, GROUP_SHIFT, GROUP_SPARE, JOURNAL_BLOCKS, EPOCHS)
    body += map_root + bitmap_root
    body += struct.pack("<Q", cut[0]) + cut[1] + struct.pack("<Q", fence[0]) + fence[1]
    body += struct.pack("<II", epoch, 0) + SALTS[epoch]
    body = body.ljust(4064, b"\0")
    return body + mac(key(b"sb-mac"), body)


def epoch_table():
    epoch = 4
    entry = SALTS[epoch] + mac(key(b"sb-mac"), b"HVSALT\n\0", struct.pack("<I", epoch), SALTS[epoch])
    return (bytes(64 * epoch) + entry).ljust(BLOCK, b"\0")


def run(lba, blocks):
    return struct.pack("<QQQQ8x", lba, 0, 1 << 48, blocks)


def journal_block(sequence, version, synced, commit, before, entries):
    head = b"HVJ\n" + struct.pack("<HHQQQQQ", commit, len(entries), 0, sequence, version, synced, 0)
    body = b"".join(entries).ljust(BLOCK - 64, b"\0")
    sealed, tag = seal(4, version, head + before + UUID, body)
    return head + tag + sealed, tag


# The vectors

def volume():
    """A small volume: its blocks, by the names of their files."""
    seven, five = bytes(n % 251 for n in range(BLOCK)), bytes(n * 7 % 251 for n in range(BLOCK))
    out = {}
    out["data-7"], to_seven = sealed_block(1, version_of(4, 0), 0, 7, DATA, seven)
    leaf = (bytes(32 * 7) + to_seven).ljust(BLOCK, b"\0")
    out["map-page"], map_root = sealed_block(2, version_of(4, 1), 1, 0, GROUP + MAP_HOMES[0], leaf)
    out["bitmap-page"], bitmap_root = sealed_block(3, version_of(4, 2), 1, 0, BITMAP, b"\1".ljust(BLOCK, b"\0"))
    out["data-5"], to_five = sealed_block(1, version_of(5, 0), 0, 5, DATA + 1, five)
    cut = (2, counting(0xB0, 16))
    first = [struct.pack("<Q", 5) + to_five, run(120, 8)]
    out["journal-3"], third = journal_block(3, version_of(5, 1), 2, 1, cut[1], first)
    second = [run(11 + n, 1) for n in range(100)]
    out["journal-4"], fourth = journal_block(4, version_of(5, 2), 3, 0, third, second)
    out["journal-5"], _ = journal_block(5, version_of(5, 3), 3, 1, fourth, [run(112, 2)])
    out["epoch-table"] = epoch_table()
    out["superblock"] = superblock(9, map_root, bitmap_root, cut, cut, 5)
    out["header"] = header()
    out["anchor"] = anchor(9, 3, third)
    return out


def keys_page():
    """The vectors of docs/sealed-keys.md, but for AEGIS, which `cryptography` does not have."""
    salt, block = SALTS[5], b"\x5a" * 16
    out = {"prk": prk_of(1)}
    out |= {name: key(name.encode()) for name in ("hdr-mac", "sb-mac", "anchor-mac")}
    out["epoch-key"] = epoch_key(5, salt)
    drawn = counting(0x60, 32) + counting(0x80, 32) + counting(0xA0, 16) + struct.pack("<QQ", 1, 2)
    out["salt"] = key(b"salt" + drawn)
    before = b"\1" * 48 + b"\2" * 16 + UUID
    for suite, name in ((1, "aes-256-gcm"), (2, "aes-256-gcm-siv")):
        sealed = seal(1, version_of(5, 9), associated(1, 0, 7), block, suite, salt)
        out[f"block-{name}"], out[f"block-{name}-tag"] = sealed
        sealed = seal(4, version_of(5, 10), before, block, suite, salt)
        out[f"journal-{name}"], out[f"journal-{name}-tag"] = sealed
    out["slot"] = key_slot()[:160]
    out["header-hmac"] = header()[4064:]
    out["header-digest"] = hashlib.sha256(header()).digest()
    out["anchor-record"] = anchor(3, 4, counting(0, 16))
    return out


def documented():
    found, name = {}, None
    for line in KEYS_PAGE.read_text().split("```vectors\n")[1].split("```")[0].splitlines():
        if not line.startswith(" "):
            name, line = line.split(" ", 1)
            found[name] = b""
        found[name] += bytes.fromhex(line)
    return {name: value for name, value in found.items() if "aegis" not in name}


def as_text(content):
    return "".join(content[at:at + 32].hex() + "\n" for at in range(0, len(content), 32))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the files in place of comparing them")
    args = parser.parse_args()
    blocks = volume()
    if args.write:
        for name, content in blocks.items():
            (HERE / f"{name}.hex").write_text(as_text(content))
        return
    there = {path.stem: path.read_text() for path in HERE.glob("*.hex")}
    texts = {name: as_text(content) for name, content in blocks.items()}
    differ = sorted(name for name in there | texts if there.get(name) != texts.get(name))
    computed, page = keys_page(), documented()
    differ += sorted(name for name in computed | page if computed.get(name) != page.get(name))
    if differ:
        sys.exit("these differ: " + ", ".join(differ))
    print(f"{len(texts)} blocks and {len(computed)} vectors of docs/sealed-keys.md are as computed")


if __name__ == "__main__":
    main()
