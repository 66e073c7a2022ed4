//! [`Polling`]: decides when a connection's thread looks for the next request again and again, for a
//! moment, before it sleeps.
//!
//! To sleep and be woken costs several times what a small request does: the processor goes idle, in a
//! virtual machine it leaves the guest, and the client must send an interrupt to bring it back. A client
//! that keeps one request or a few in flight asks again soon after its reply; who is still there then
//! spares both of them that. Whether a client is like that is found by trying. A try in vain makes the
//! next one rarer: for one that asks now and then there are none to speak of.

use std::time::Duration;

/// Tries in vain, after which they grow rarer no more: one in 64 waits.
const MOST_MISSES: u32 = 6;

/// The tries of one connection.
pub(super) struct Polling {
    window: Duration,
    /// Tries in vain since the last that found something.
    misses: u32,
    /// Waits without a try that are still to come.
    pause: u32,
}

impl Polling {
    /// Tries last `window` at most; zero: there are none.
    pub(super) fn new(window: Duration) -> Self {
        Self { window, misses: 0, pause: 0 }
    }

    /// How long to look for the next request, in this wait. To be asked once a wait.
    pub(super) fn next_try(&mut self) -> Option<Duration> {
        if self.window.is_zero() {
            return None;
        }
        let due = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        due.then_some(self.window)
    }

    /// Takes note of how a try ended.
    pub(super) fn ended(&mut self, found: bool) {
        self.misses = if found { 0 } else { (self.misses + 1).min(MOST_MISSES) };
        self.pause = (1 << self.misses) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(50);

    /// How many of so many waits have a try, when none finds anything.
    fn tries_in_vain(polling: &mut Polling, waits: u32) -> u32 {
        (0..waits)
            .filter(|_| polling.next_try().map(|_| polling.ended(false)).is_some())
            .fold(0, |n, _| n + 1)
    }

    #[test]
    fn a_client_that_asks_soon_is_always_waited_for() {
        let mut polling = Polling::new(WINDOW);
        for _ in 0..1000 {
            assert_eq!(polling.next_try(), Some(WINDOW));
            polling.ended(true);
        }
    }

    #[test]
    fn tries_in_vain_grow_rare_and_one_that_finds_something_brings_them_back() {
        let mut polling = Polling::new(WINDOW);
        assert_eq!(tries_in_vain(&mut polling, 1 + 2 + 4 + 8 + 16 + 32), 6);
        assert_eq!(tries_in_vain(&mut polling, 6400), 100);
        while polling.next_try().is_none() {}
        polling.ended(true);
        assert_eq!(polling.next_try(), Some(WINDOW));
    }

    #[test]
    fn without_a_window_there_are_none() {
        assert_eq!(Polling::new(Duration::ZERO).next_try(), None);
    }
}
