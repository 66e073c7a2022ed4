//! [`Pace`]: the least that a client must move while the server holds memory for it.
//!
//! A socket's own time limit ends only what stands still. Whoever moves a byte now and then could keep
//! a request's memory for ever.

use std::io;
use std::time::{Duration, Instant};

/// The least that must move within one limit, in bytes, unless what is to be moved comes to its end.
const LEAST: usize = 64 << 10;

/// Watches one payload on its way in, or one batch of replies on its way out.
pub(super) struct Pace {
    limit: Duration,
    since: Instant,
    moved: usize,
}

impl Pace {
    /// The time runs from now on.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, since: Instant::now(), moved: 0 }
    }

    /// Notes that `bytes` more have moved, and that it is not the end yet.
    ///
    /// # Errors
    /// `TimedOut` when that was too little for the time it took.
    pub(super) fn moved(&mut self, bytes: usize) -> io::Result<()> {
        self.moved = self.moved.saturating_add(bytes);
        if self.moved >= LEAST {
            *self = Self::new(self.limit);
        } else if self.since.elapsed() > self.limit {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_by_little_is_not_enough() {
        let mut pace = Pace::new(Duration::from_secs(60));
        pace.moved(1).unwrap();
        pace.since = pace.since.checked_sub(Duration::from_secs(61)).unwrap();
        assert_eq!(pace.moved(LEAST - 2).unwrap_err().kind(), io::ErrorKind::TimedOut);
        pace.moved(1).unwrap();
        pace.moved(1).unwrap();
        assert_eq!(pace.moved, 1, "the time runs anew after each 64 KiB");
    }
}
