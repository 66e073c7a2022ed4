//! [`Upkeep`]: the thread that a mounted sealed volume needs, since the engine has none of its own.
//!
//! It runs checkpoints before writers must wait for them, and moves a lazy anchor. [`Upkeep::close`] ends it
//! and leaves nothing to recover; dropping it ends the thread alone, and the volume is as after a crash.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::anchor::AnchorMode;
use crate::block::Disk;
use crate::error::{Error, Result};
use crate::sealed::Device;

use super::lazy::Lazy;

/// How often it looks when there is little to do ...
const PAUSE: Duration = Duration::from_millis(50);
/// ... and while there are writes: a small volume's spare blocks are used up in a few hundredths of a second.
/// From the last on less and less often.
const SHORT_PAUSE: Duration = Duration::from_millis(2);
/// How often a lazy anchor moves.
const INTERVAL: Duration = Duration::from_secs(1);

/// Upkeep of a mounted volume.
pub(super) struct Upkeep {
    device: Device,
    /// The device with its lazy anchor, if it has one.
    lazy: Option<Lazy>,
    stopping: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Upkeep {
    /// That of a volume; it begins with [`Self::start`].
    pub(super) fn of(device: Device, mode: AnchorMode) -> Self {
        let lazy = (mode == AnchorMode::Lazy).then(|| Lazy::new(device.clone(), INTERVAL));
        Self { device, lazy, stopping: Arc::default(), thread: None }
    }

    /// The volume's data, for its users.
    pub(super) fn disk(&self) -> Disk {
        match &self.lazy {
            Some(lazy) => Disk::new(lazy.clone()),
            None => Disk::new(self.device.clone()),
        }
    }

    /// Begins it.
    ///
    /// # Errors
    /// Without another thread.
    pub(super) fn start(&mut self) -> Result<()> {
        let (device, lazy, told) = (self.device.clone(), self.lazy.clone(), Arc::clone(&self.stopping));
        let thread = std::thread::Builder::new().name("upkeep".into());
        let thread = thread.spawn(move || keep(&device, lazy.as_ref(), &told));
        let failed = |e| Error::io("cannot start a thread for the volume's upkeep", e);
        self.thread = Some(thread.map_err(failed)?);
        Ok(())
    }

    /// Ends it, flushes, and leaves nothing to recover.
    pub(super) fn close(mut self) -> Result<()> {
        self.stop();
        self.device.close()
    }

    fn stop(&mut self) {
        *self.stopping.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopping.1.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the volume's upkeep panicked");
        }
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Until told to stop, or until the volume takes no more writes.
fn keep(device: &Device, lazy: Option<&Lazy>, (stopping, told): &(Mutex<bool>, Condvar)) {
    let (mut pause, mut before) = (PAUSE, device.usage());
    loop {
        let stop = stopping.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = told.wait_timeout_while(stop, pause, |stop| !*stop);
        if *waited.unwrap_or_else(PoisonError::into_inner).0 {
            return;
        }
        let usage = device.usage();
        pause = if usage == before { PAUSE.min(pause * 2) } else { SHORT_PAUSE };
        before = usage;
        let done = device.keep_up().and_then(|()| lazy.map_or(Ok(()), Lazy::keep_up));
        if let Err(error) = done {
            // Every write and flush says so from now on; nothing is left to be done here.
            tracing::error!(%error, "the volume's upkeep ends");
            return;
        }
    }
}
