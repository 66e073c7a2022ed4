//! Progress bars for long work, and its cancellation by Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

use crate::env::Progress;
use crate::error::{Error, Result};

/// Shows a bar per step on stderr, when that is a terminal, and hears SIGINT and SIGTERM.
pub(super) struct Bar {
    bar: ProgressBar,
    interrupted: Arc<AtomicBool>,
}

impl Bar {
    /// From here on an interrupt no longer ends the process but cancels the work.
    pub(super) fn new() -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .map_err(|e| Error::io("cannot listen for signals", e))?;
        }
        let bar = ProgressBar::no_length();
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        Ok(Self { bar, interrupted })
    }
}

impl Progress for Bar {
    fn begin(&self, step: &str, units: u64) {
        let template =
            if units > 1 { "{msg} {wide_bar} {bytes}/{total_bytes} {eta} left" } else { "{spinner} {msg}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_message(step.to_owned());
        self.bar.set_length(units);
        self.bar.set_position(0);
        self.bar.tick();
    }

    fn advance(&self, units: u64) {
        self.bar.inc(units);
    }

    fn cancelled(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
