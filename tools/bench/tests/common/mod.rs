//! What the tests share: running the program beside a `hostveil`, and reading its results.
#![allow(dead_code)] // not every test needs all of it

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use serde_json::Value;

pub(crate) const BENCH: &str = env!("CARGO_BIN_EXE_hostveil-bench");

/// The `hostveil` beside the program that is tested. Fails the test when it has not been built.
pub(crate) fn hostveil() -> PathBuf {
    let path = Path::new(BENCH).with_file_name("hostveil");
    assert!(path.is_file(), "{} is missing: cargo build --bin hostveil", path.display());
    path
}

/// A directory of a test's own, for its disks and for temporary files.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(place.path("tmp")).unwrap();
        std::fs::create_dir(place.path("disks")).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `hostveil-bench ARGS` in this directory, not started yet.
    pub(crate) fn command(&self, args: &str) -> Command {
        let mut command = Command::new(BENCH);
        command.args(args.split_whitespace()).current_dir(self.dir.path()).env("TMPDIR", self.path("tmp"));
        command
    }

    pub(crate) fn run(&self, args: &str) -> Output {
        self.command(args).output().unwrap()
    }

    /// The document that a command prints with `--json`.
    pub(crate) fn json(&self, args: &str) -> Value {
        let output = self.run(args);
        let words = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat();
        assert_eq!(output.status.code(), Some(0), "{words}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// That no temporary file is left.
    pub(crate) fn is_clean(&self) {
        for name in ["tmp", "disks"] {
            let left: Vec<_> = self.path(name).read_dir().unwrap().map(|e| e.unwrap().path()).collect();
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }

    /// Makes a volume, `disk.img`, which `vm.key` opens.
    pub(crate) fn volume(&self) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(self.path("vm.key"), "a key").unwrap();
        std::fs::set_permissions(self.path("vm.key"), PermissionsExt::from_mode(0o600)).unwrap();
        let mut command = Command::new(hostveil());
        command.args("format --size 16M --type luks --pbkdf pbkdf2 --key-file vm.key disk.img".split(' '));
        let output = command.current_dir(self.dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// How a command failed: its exit code and its words.
pub(crate) fn failure(output: &Output) -> (i32, String) {
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The medians of one column, by row.
pub(crate) fn column(result: &Value, column: &str) -> Vec<(String, f64)> {
    let figures = result["figures"].as_array().unwrap().iter().filter(|f| f["column"] == column);
    figures.map(|f| (f["row"].as_str().unwrap().to_owned(), f["median"].as_f64().unwrap())).collect()
}

/// Whose command line names a directory: every process that a run started does.
pub(crate) fn processes_of(place: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(place.to_str().unwrap()) {
            found.push(command);
        }
    }
    found
}

/// Waits until something is so, for as long as a slow machine may take.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a benchmark that would take hours, sends it a signal some time after what `is_so` waits for, and
/// looks around.
pub(crate) fn interrupted(args: &str, signal: Signal, is_so: impl Fn(&Path) -> bool) {
    hostveil();
    let place = Place::new();
    // Absolute, so that the processes can be recognised.
    let args = args.replace("DISKS", place.path("disks").to_str().unwrap());
    let mut command: Command = place.command(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("its processes start", || is_so(&place.path("")));
    // Filled disks: from here on something is being measured, or soon.
    std::thread::sleep(Duration::from_millis(700));
    assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
    kill_process(Pid::from_child(&child), signal).unwrap();
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{words}");
    assert!(words.contains("hostveil-bench: interrupted"), "{words}");
    assert!(output.stdout.is_empty(), "half a result");
    assert_eq!(processes_of(&place.path("")), Vec::<String>::new());
    place.is_clean();
}
