//! What the tests share: running the program beside a `hostveil`, and reading its results.
#![allow(dead_code)] // not every test needs all of it

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
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
        command.args("format --size 16M --pbkdf pbkdf2 --key-file vm.key disk.img".split(' '));
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
