//! The sandbox: what this process can still do once its volumes are unlocked and its sockets bound.
//!
//! From then on it reads and writes descriptors that are open, and accepts connections. Two mechanisms
//! of the kernel take everything else away, so that whoever finds a fault in the server is not the
//! user it runs as:
//!
//! * Landlock ([`restrict_files`]): no file can be opened, made or removed, but for Unix sockets' files
//!   at the end and what [`Confinement::writable`] names; no TCP port bound or connected to; no signal
//!   sent to another process.
//! * seccomp ([`restrict_calls`]): no system call but those of the table in `calls.rs`.
//!
//! Landlock binds the calling thread and those that it starts. So the sandbox is entered before the
//! server starts any; [`enter`] tells when there are others already. Neither can be left again.

mod calls;
mod files;

use std::fmt;
use std::path::PathBuf;

pub use calls::restrict_calls;
pub use files::restrict_files;

/// What must stay possible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Directories of Unix sockets, the files of which are removed at the end.
    pub sockets: Vec<PathBuf>,
    /// Directories in which files are made, read, written, renamed and removed.
    pub writable: Vec<PathBuf>,
}

/// What became of it. Shown, it is `landlock ABI 7 + seccomp`, or what is left of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The version of Landlock's interface that is in force, or why there is none.
    pub landlock: Result<u32, String>,
    /// Whether the system call filter is in force, or why it is not.
    pub seccomp: Result<(), String>,
    /// Threads that were there before, and that Landlock does not bind.
    pub strays: usize,
}

/// Enters the sandbox, as far as the kernel has what it takes: what is missing is said in the log, and
/// in what is returned, and the rest holds.
pub fn enter(confinement: &Confinement) -> Sandbox {
    prepare();
    let strays = threads().saturating_sub(1);
    let landlock = restrict_files(confinement);
    let seccomp = restrict_calls(confinement);
    let sandbox = Sandbox { landlock, seccomp, strays };
    if let Err(why) = &sandbox.landlock {
        tracing::warn!("the sandbox is without Landlock, and other files within reach: {why}");
    } else if strays > 0 {
        tracing::warn!(strays, "threads that started before the sandbox are not bound by Landlock");
    }
    if let Err(why) = &sandbox.seccomp {
        tracing::warn!("the sandbox is without seccomp, and every system call within reach: {why}");
    }
    sandbox
}

/// What libraries do at their first use, and can then do no more.
fn prepare() {
    // The first question after a page's size may read a file.
    let _ = rustix::param::page_size();
    // Looks for a device that tells of snapshots of the virtual machine.
    #[cfg(feature = "aws-lc")]
    let _ = aws_lc_rs::rand::fill(&mut [0; 1]);
}

/// How many threads this process has; 1 where that cannot be told.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.landlock, &self.seccomp) {
            (Ok(abi), Ok(())) => write!(f, "landlock ABI {abi} + seccomp"),
            (Ok(abi), Err(_)) => write!(f, "landlock ABI {abi}"),
            (Err(_), Ok(())) => f.write_str("seccomp"),
            (Err(_), Err(_)) => f.write_str("none"),
        }
    }
}
