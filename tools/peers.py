#!/usr/bin/env python3
"""Measures hostveil beside its peers: the same NBD clients against several servers.

Each server gets a disk of its own on a file system in memory, wholly written
beforehand. In each round every workload runs on every server, in an order that
moves from round to round, so that a slow moment of the machine hits all alike.
What is printed: the median and the range over the rounds; the ratio to a chosen
server, formed within each round; and how many seconds of processor time the
server itself spent on a GiB.

Servers:  hostveil, hostveil-512 (sectors of 512 bytes), qemu-raw, qemu-luks,
          nbdkit-file, nbdkit-memory, nbdkit-luks
Needs:    cargo build --release; the Debian packages nbdkit libnbd-bin fio qemu-utils
"""

import argparse
import atexit
import datetime
import json
import os
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PASSPHRASE = "a passphrase for a benchmark"
OURS = {"hostveil": "4096", "hostveil-512": "512"}
PEERS = ["qemu-raw", "qemu-luks", "nbdkit-file", "nbdkit-memory", "nbdkit-luks"]
PACKAGES = {"nbdkit": "nbdkit", "nbdcopy": "libnbd-bin", "fio": "fio", "qemu-nbd": "qemu-utils", "qemu-img": "qemu-utils"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often everything runs (3)")
    parser.add_argument("--size", type=int, default=1024, help="MiB of each disk (1024)")
    parser.add_argument("--runtime", type=float, default=2, help="seconds of each fio workload (2)")
    parser.add_argument("--work", type=re.compile, default=re.compile("."), metavar="REGEX", help="only workloads whose name matches")
    parser.add_argument("--peers", default="hostveil," + ",".join(PEERS), metavar="LIST", help="which servers, by commas (%(default)s)")
    parser.add_argument("--base", default="qemu-luks", help="the server that ratios refer to (%(default)s)")
    parser.add_argument("--binary", type=Path, default=REPO / "target/release/hostveil", help="our program (target/release/hostveil)")
    parser.add_argument("--disks", type=Path, default=Path("/dev/shm"), help="where disks lie (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append each single result, an object a line")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    chosen = parser.parse_args()
    chosen.peers = chosen.peers.split(",")
    unknown = set(chosen.peers) - set(PEERS) - set(OURS)
    if unknown:
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    if chosen.rounds < 1 or chosen.size < 64:
        parser.error("at least one round, and disks of at least 64 MiB")
    return chosen


# ------------------------------------------------------------------------ servers


class Server:
    """A running server, and where its export is."""

    def __init__(self, name, process, uri):
        self.name, self.process, self.uri = name, process, uri

    def processor_seconds(self):
        """User and system time that its process has spent."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """Directories and processes that end with the program."""

    def __init__(self, chosen):
        self.chosen = chosen
        self.size = chosen.size << 20
        self.place = Path(tempfile.mkdtemp(prefix="hostveil-peers."))
        self.disks = Path(tempfile.mkdtemp(prefix="hostveil-peers.", dir=chosen.disks))
        self.servers = []
        atexit.register(self.stop)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(130))

    def stop(self):
        for server in self.servers:
            server.process.terminate()
        for server in self.servers:
            try:
                server.process.wait(20)
            except subprocess.TimeoutExpired:
                server.process.kill()
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.rmtree(self.disks, ignore_errors=True)

    def start(self, name):
        socket = self.place / f"{name}.sock"
        command = self.our_command(name, socket) if name in OURS else self.peer_command(name, socket)
        errors = self.place / f"{name}.errors"
        with errors.open("w") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file)
        self.servers.append(Server(name, process, f"nbd+unix:///?socket={socket}"))
        for _ in range(600):
            if socket.exists():
                time.sleep(0.1)  # between its binding and its listening
            if process.poll() is not None:
                sys.exit(f"{name} ended: {errors.read_text()}")
            if socket.exists() and subprocess.run(["nbdinfo", "--size", self.servers[-1].uri], capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        sys.exit(f"{name} did not start: {errors.read_text()}")

    def our_command(self, name, socket):
        disk, key = self.disks / name, self.place / f"{name}.key"
        key.write_text(PASSPHRASE)
        key.chmod(0o600)
        make = ["format", "--size", str(self.size), "--sector-size", OURS[name], "--pbkdf", "pbkdf2", "--key-file", key, disk]
        run([self.chosen.binary, *make])
        return [self.chosen.binary, "serve", "--json", "--socket", socket, "--key-file", key, disk]

    def peer_command(self, name, socket):
        disk, key = self.disks / name, self.place / f"{name}.key"
        secret = ["--object", f"secret,id=key,file={key}"]
        if name.endswith("-luks"):
            key.write_text(PASSPHRASE)
            cipher = "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256,iter-time=10"
            run(["qemu-img", "create", "-q", "-f", "luks", *secret, "-o", f"key-secret=key,{cipher}", disk, str(self.size)])
        elif name != "nbdkit-memory":
            with disk.open("wb") as file:
                file.truncate(self.size)
        qemu = ["qemu-nbd", "--persistent", "--shared=64", "--socket", socket]
        nbdkit = ["nbdkit", "--foreground", "--unix", socket]
        return {
            "qemu-raw": [*qemu, "--format=raw", "--discard=unmap", disk],
            "qemu-luks": [*qemu, *secret, "--image-opts", f"driver=luks,key-secret=key,file.driver=file,file.filename={disk}"],
            "nbdkit-file": [*nbdkit, "file", disk],
            "nbdkit-memory": [*nbdkit, "memory", str(self.size)],
            "nbdkit-luks": [*nbdkit, "--filter=luks", "file", disk, f"passphrase=+{key}"],
        }[name]


def run(command, timeout=1800):
    """What a command prints; a RuntimeError when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} exited with {done.returncode}: {(done.stderr or done.stdout)[-400:]}")
    return done.stdout


# ---------------------------------------------------------------------- workloads
# Each is a function of a server's URI that gives (bytes, seconds, p99 latency in µs or None).


def fio(bench, rw, block, depth, jobs=1):
    def work(uri):
        # The engine has to be named before its options.
        command = ["fio", "--name=work", "--ioengine=nbd", f"--uri={uri}", f"--rw={rw}", f"--bs={block}"]
        command += [f"--iodepth={depth}", f"--numjobs={jobs}", f"--size={bench.size}", "--time_based"]
        command += [f"--runtime={bench.chosen.runtime}", "--norandommap", "--randrepeat=0", "--thread"]
        command += ["--group_reporting", "--output-format=json"]
        text = run(command)
        job = json.loads(text[text.index("{"):])["jobs"][0]
        if job["error"]:
            raise RuntimeError(f"fio reported error {job['error']}")
        side = job["write" if "write" in rw else "read"]
        p99 = side["clat_ns"].get("percentile", {}).get("99.000000", 0) / 1000
        return side["io_bytes"], side["io_bytes"] / max(side["bw_bytes"], 1), p99
    return work


def nbdcopy(bench, write, connections):
    def work(uri):
        command = ["nbdcopy", "--request-size=1048576", "--requests=16", f"--connections={connections}"]
        start = time.monotonic()
        run(command + ([bench.disks / "source", uri] if write else [uri, "null:"]))
        return bench.size, time.monotonic() - start, None
    return work


def qemu_img_bench(bench, write, count, depth, length):
    def work(uri):
        count_here = min(count, bench.size // length)
        command = ["qemu-img", "bench", "-f", "raw", "-c", count_here, "-d", depth, "-s", length, *(["-w"] if write else []), uri]
        seconds = re.search(r"in ([0-9.]+) seconds", run([str(word) for word in command]))
        return count_here * length, float(seconds[1]), None
    return work


def workloads(bench):
    every = {
        "nbdcopy read 1M, 1 connection": nbdcopy(bench, False, 1),
        "nbdcopy write 1M, 1 connection": nbdcopy(bench, True, 1),
        "nbdcopy read 1M, 4 connections": nbdcopy(bench, False, 4),
        "nbdcopy write 1M, 4 connections": nbdcopy(bench, True, 4),
        "fio read 128k q16": fio(bench, "read", "128k", 16),
        "fio write 128k q16": fio(bench, "write", "128k", 16),
        "fio read 1M q4 x4": fio(bench, "read", "1M", 4, 4),
        "fio write 1M q4 x4": fio(bench, "write", "1M", 4, 4),
        "fio randread 4k q1": fio(bench, "randread", "4k", 1),
        "fio randwrite 4k q1": fio(bench, "randwrite", "4k", 1),
        "fio randread 4k q32": fio(bench, "randread", "4k", 32),
        "fio randwrite 4k q32": fio(bench, "randwrite", "4k", 32),
        "fio randread 4k q16 x4": fio(bench, "randread", "4k", 16, 4),
        "fio randwrite 4k q16 x4": fio(bench, "randwrite", "4k", 16, 4),
        "qemu-img bench read 4k d16": qemu_img_bench(bench, False, 20000, 16, 4096),
        "qemu-img bench write 4k d16": qemu_img_bench(bench, True, 20000, 16, 4096),
        "qemu-img bench read 64k d8": qemu_img_bench(bench, False, 8000, 8, 65536),
    }
    return {name: work for name, work in every.items() if bench.chosen.work.search(name)}


def measure(server, work):
    before = server.processor_seconds()
    count, seconds, p99 = work(server.uri)
    processor = server.processor_seconds() - before
    return {"bytes_per_s": count / seconds, "cpu_s_per_gib": processor / (count / 2**30), "p99_us": p99}


def measure_all(bench, works):
    results, failures = {}, 0
    for number in range(bench.chosen.rounds):
        for name, work in works.items():
            turn = number % len(bench.servers)
            for server in bench.servers[turn:] + bench.servers[:turn]:
                try:
                    result = measure(server, work)
                except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                    print(f"{server.name}, {name}: {error}", file=sys.stderr)
                    failures += 1
                    continue
                results.setdefault((name, server.name), {})[number] = result
                if bench.chosen.json:
                    with bench.chosen.json.open("a") as file:
                        file.write(json.dumps({"round": number, "work": name, "server": server.name, **result}) + "\n")
        print(f"round {number + 1} of {bench.chosen.rounds} is done", file=sys.stderr)
    return results, failures


# ------------------------------------------------------------------------- report


def machine():
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    version = lambda *command: (subprocess.run(command, capture_output=True, text=True).stdout.splitlines() or ["?"])[0]
    commit = version("git", "-C", str(REPO), "describe", "--always", "--dirty")
    return [
        f"{model[1] if model else os.uname().machine}, {os.cpu_count()} cores, Linux {os.uname().release}, "
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
        f"hostveil at {commit}; {version('qemu-nbd', '--version')}; {version('nbdkit', '--version')}; {version('fio', '--version')}",
    ]


def row(name, results, server, base):
    """The columns of one server in one workload's table."""
    rounds = results.get((name, server), {})
    if not rounds:
        return [server, "failed", "", "", ""]
    small = " 4k " in f"{name} "
    unit = 4096e3 if small else 2**20
    spread = lambda values, form: f"{form.format(statistics.median(values))} [{form.format(min(values))}–{form.format(max(values))}]"
    speeds = [result["bytes_per_s"] / unit for result in rounds.values()]
    others = results.get((name, base), {})
    ratios = [result["bytes_per_s"] / others[n]["bytes_per_s"] for n, result in rounds.items() if n in others]
    latencies = [result["p99_us"] for result in rounds.values() if result["p99_us"]]
    return [
        server,
        spread(speeds, "{:.1f}" if small else "{:.0f}"),
        spread(ratios, "{:.2f}") if ratios else "",
        spread([result["cpu_s_per_gib"] for result in rounds.values()], "{:.2f}"),
        f"{statistics.median(latencies):.0f}" if latencies else "",
    ]


def report(bench, results, works):
    for line in machine():
        print(line)
    chosen = bench.chosen
    print(f"{chosen.size} MiB disks in {chosen.disks}, {chosen.rounds} rounds; median [least–most]")
    for name in works:
        unit = "thousand requests/s" if " 4k " in f"{name} " else "MiB/s"
        table = [["server", unit, f"× {chosen.base}", "server CPU s/GiB", "p99 µs"]]
        table += [row(name, results, server.name, chosen.base) for server in bench.servers]
        if chosen.markdown:
            table.insert(1, ["---"] + ["---:"] * 4)
            print(f"\n### {name}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in table))
        else:
            widths = [max(map(len, column)) for column in zip(*table)]
            print(f"\n{name}")
            for cells in table:
                print("  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip())


def check_programs(chosen):
    needed = {"nbdcopy", "fio", "qemu-img"} | {"qemu-nbd" for p in chosen.peers if p.startswith("qemu")}
    needed |= {"nbdkit" for p in chosen.peers if p.startswith("nbdkit")}
    missing = sorted({PACKAGES[program] for program in needed if not shutil.which(program)})
    if missing:
        sys.exit(f"peers are missing: apt-get install {' '.join(missing)}")
    if set(chosen.peers) & set(OURS) and not chosen.binary.exists():
        sys.exit(f"{chosen.binary} is missing: cargo build --release")


def main():
    chosen = arguments()
    check_programs(chosen)
    bench = Bench(chosen)
    works = workloads(bench)
    if not works:
        sys.exit("no workload has such a name")
    source = bench.disks / "source"
    with source.open("wb") as file:
        for _ in range(chosen.size):
            file.write(secrets.token_bytes(1 << 20))
    for name in chosen.peers:
        bench.start(name)
        run(["nbdcopy", source, bench.servers[-1].uri])
    results, failures = measure_all(bench, works)
    report(bench, results, works)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
