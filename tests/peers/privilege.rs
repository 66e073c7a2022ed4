//! What needs root, by root or by sudo: mounts and loop devices that go away with their test. And
//! the opposite: running a server as somebody who may do nothing.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{HOSTVEIL, Run, find_peer};

/// Whether the tests run as root.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that root runs.
pub(crate) fn as_root(program: &str) -> Command {
    let program = find_peer(program);
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new(find_peer("sudo"));
    command.arg("-n").arg(program);
    command
}

/// The words before a command that make it run without any privilege: as `nobody` if we are root.
pub(crate) fn unprivileged() -> Vec<String> {
    let words =
        ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
    let mut command = vec![find_peer("setpriv").to_str().unwrap().to_owned()];
    if is_root() {
        command.extend(words.map(str::to_owned));
    } else {
        command.push("--no-new-privs".to_owned());
    }
    command
}

/// A copy of the program in `place`, and `place` with all that is in it open to everybody: a
/// checkout may lie where only its owner can reach it.
pub(crate) fn open_to_everybody(place: &Path) -> PathBuf {
    let program = place.join("hostveil");
    std::fs::copy(HOSTVEIL, &program).unwrap();
    Command::new("chmod").args(["-R", "a+rwX"]).arg(place).run();
    program
}

/// A loop device; it is detached when dropped, and by the kernel when the test is killed.
pub(crate) struct LoopDevice {
    path: PathBuf,
    /// The device is to be detached already, and stays for as long as somebody has it open.
    _open: File,
}

impl LoopDevice {
    /// Attaches a file, as a device with the given logical sector size.
    pub(crate) fn attach(file: &Path, sector_size: u32) -> Self {
        let control = Path::new("/dev/loop-control");
        assert!(
            control.exists(),
            "this test needs loop devices, and {} is missing: load the kernel's module `loop`, or run where it is",
            control.display()
        );
        let sector_size = sector_size.to_string();
        let mut command = as_root("losetup");
        command.args(["--find", "--show", "--sector-size", &sector_size]).arg(file);
        let path = PathBuf::from(command.run().trim());
        let open = open_as_owner(&path);
        // What is open is detached when the last user closes it: then nothing is left to be done, and a
        // device of the same number is another test's.
        as_root("losetup").arg("-d").arg(&path).run();
        let open = open.unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
        Self { path, _open: open }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Has the device notice that its file has another size.
    pub(crate) fn take_size_of_file(&self) {
        as_root("losetup").arg("-c").arg(&self.path).run();
    }
}

/// Makes a device ours, and opens it.
fn open_as_owner(device: &Path) -> std::io::Result<File> {
    let owner = rustix::process::getuid().as_raw().to_string();
    as_root("chown").arg(owner).arg(device).status()?;
    File::open(device)
}

/// A small file system in memory; it is unmounted when dropped.
pub(crate) struct SmallFileSystem {
    // Unmounted before the directory goes away.
    place: tempfile::TempDir,
}

impl SmallFileSystem {
    /// One with room for `size` bytes.
    pub(crate) fn mount(size: u64) -> Self {
        let place = tempfile::Builder::new().prefix("hostveil-mount.").tempdir().unwrap();
        let options = format!("size={size},mode=777");
        as_root("mount").args(["-t", "tmpfs", "-o", &options, "hostveil-test"]).arg(place.path()).run();
        Self { place }
    }

    pub(crate) fn path(&self) -> &Path {
        self.place.path()
    }

    /// Makes it read-only.
    pub(crate) fn make_read_only(&self) {
        as_root("mount").args(["-o", "remount,ro"]).arg(self.path()).run();
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = as_root("umount").arg("-l").arg(self.path()).status();
    }
}
