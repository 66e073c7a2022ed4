//! [`Batch`]: large writes that a thread receives one after the other before it passes the turn on and
//! carries them out.
//!
//! To pass the turn wakes a thread, which the kernel mostly puts on the same CPU: it then receives when this one
//! is done, not meanwhile. And each reply wakes the client. A client that keeps many writes in flight is
//! served faster when several share both; replies leave in two halves, so that it sends more while the
//! second is carried out.

use std::time::{Duration, Instant};

/// The most bytes of a batch, but for its last request.
const MOST: usize = 1 << 20;
/// For how long requests are taken in, from when the first began to arrive: beside a client or a network
/// that sends more slowly, the wake-ups are little.
const PATIENCE: Duration = Duration::from_millis(1);

/// Requests that a thread has received, to be carried out when it no longer has the turn.
pub(super) struct Batch<T> {
    requests: Vec<T>,
    bytes: usize,
    since: Instant,
    /// It takes no more.
    closed: bool,
}

impl<T> Batch<T> {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self { requests: Vec::new(), bytes: 0, since: Instant::now(), closed: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether to read on before it is carried out. `more_at_hand`: nobody has to wait for the next request.
    pub(super) fn goes_on(&self, more_at_hand: bool) -> bool {
        self.is_empty()
            || more_at_hand && !self.closed && self.bytes < MOST && self.since.elapsed() < PATIENCE
    }

    /// Adds a request that holds so many bytes and began to arrive at `since`.
    pub(super) fn push(&mut self, request: T, bytes: usize, since: Instant) {
        if self.requests.is_empty() {
            self.since = since;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.requests.push(request);
    }

    /// Has it take no more.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Takes all requests out, in order; it begins anew. With each comes whether it ends the first half.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (T, bool)> + '_ {
        (self.bytes, self.closed) = (0, false);
        let half = self.requests.len() / 2;
        self.requests.drain(..).enumerate().map(move |(number, request)| (request, number + 1 == half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: usize = 128 << 10;

    /// A batch of so many writes that is still young, however slow the machine is that runs this.
    fn batch(count: usize) -> Batch<usize> {
        let mut batch = Batch::new();
        (0..count).for_each(|number| batch.push(number, WRITE, Instant::now()));
        batch.since = Instant::now();
        batch
    }

    #[test]
    fn a_batch_takes_what_is_at_hand_up_to_its_bound() {
        assert!(batch(0).goes_on(false), "an empty one takes whatever comes");
        assert!(batch(7).goes_on(true) && !batch(7).goes_on(false) && !batch(8).goes_on(true));
    }

    #[test]
    fn a_batch_ends_when_it_is_old_or_closed() {
        let (mut old, mut closed) = (Batch::new(), batch(1));
        old.push(0, WRITE, Instant::now().checked_sub(PATIENCE).unwrap());
        closed.close();
        assert!(!old.goes_on(true) && !closed.goes_on(true));
        assert_eq!(closed.take().count(), 1);
        closed.push(0, WRITE, Instant::now());
        assert!(closed.goes_on(true), "it begins anew");
    }

    #[test]
    fn the_first_half_is_told_in_order() {
        let halves = |count| batch(count).take().collect::<Vec<_>>();
        assert_eq!(halves(1), [(0, false)]);
        assert_eq!(halves(2), [(0, true), (1, false)]);
        assert_eq!(halves(5), [(0, false), (1, true), (2, false), (3, false), (4, false)]);
    }
}
