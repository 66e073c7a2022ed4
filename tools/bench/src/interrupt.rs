//! Ctrl-C: remembered, so that whatever runs can end in order and take its processes and files along.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use hostveil::error::{Error, ErrorKind, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static EAR: OnceLock<Ear> = OnceLock::new();

struct Ear {
    heard: Arc<AtomicBool>,
    /// Readable from the first signal on: nobody ever reads it.
    pipe: UnixStream,
}

/// From here on a signal no longer ends the process: [`check`] tells of it.
pub(crate) fn listen() -> Result<()> {
    let cannot = |e| Error::io("cannot listen for signals", e);
    let (pipe, end) = UnixStream::pair().map_err(cannot)?;
    let heard = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&heard)).map_err(cannot)?;
        let end = end.try_clone().map_err(cannot)?;
        signal_hook::low_level::pipe::register(signal, end).map_err(cannot)?;
    }
    // Whoever listens first goes on listening.
    let _ = EAR.set(Ear { heard, pipe });
    Ok(())
}

/// An error once a signal came.
pub(crate) fn check() -> Result<()> {
    match EAR.get() {
        Some(ear) if ear.heard.load(Ordering::Relaxed) => {
            Err(Error::new(ErrorKind::Cancelled, "interrupted"))
        }
        _ => Ok(()),
    }
}

/// A descriptor that becomes readable when a signal comes, to be waited for beside others.
pub(crate) fn descriptor() -> Option<BorrowedFd<'static>> {
    EAR.get().map(|ear| ear.pipe.as_fd())
}
