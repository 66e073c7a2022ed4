//! [`Progress`]: a bar with the time that is left, where standard error is a terminal.

use std::time::Duration;

use hostveil::error::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::interrupt;

/// The progress of a run whose steps are expected to take a known time.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// The whole run is expected to take `whole`.
    pub(crate) fn new(whole: Duration) -> Self {
        let bar = ProgressBar::with_draw_target(Some(millis(whole)), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{wide_msg} {bar:30} {eta} left") {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// A step begins; an error if it should not, because of an interrupt.
    pub(crate) fn begin(&self, step: impl Into<String>) -> Result<()> {
        self.bar.set_message(step.into());
        interrupt::check()
    }

    /// A step is over that was expected to take so long.
    pub(crate) fn done(&self, expected: Duration) {
        self.bar.inc(millis(expected));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
