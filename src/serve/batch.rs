//! [`Batch`]: large requests that a thread receives one after the other before it passes the turn on and
//! carries them out.
//!
//! To pass the turn wakes a thread, which the kernel mostly puts on the same CPU: it then receives when this one
//! is done, not meanwhile. And each reply wakes the client. A client that keeps many requests in flight is
//! served faster when several share both; replies leave in two halves, so that it sends more while the
//! second is carried out.

use std::time::{Duration, Instant};

/// The most bytes of a batch, but for its last request.
pub(super) const MOST: usize = 1 << 20;
/// The same where there is a read among them: what was read should be in the CPU's cache still when it is sent.
pub(super) const MOST_WITH_READS: usize = 256 << 10;
/// For how long requests are taken in, from when the first began to arrive: beside a client or a network
/// that sends more slowly, the wake-ups are little.
const PATIENCE: Duration = Duration::from_millis(1);

/// Requests that a thread has received, to be carried out when it no longer has the turn.
pub(super) struct Batch<T> {
    requests: Vec<T>,
    bytes: usize,
    /// It takes no more once it has so many bytes.
    most: usize,
    since: Instant,
}

impl<T> Batch<T> {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self { requests: Vec::new(), bytes: 0, most: MOST, since: Instant::now() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether to read on before it is carried out. `more_at_hand`: nobody has to wait for the next request.
    pub(super) fn goes_on(&self, more_at_hand: bool) -> bool {
        self.is_empty() || more_at_hand && self.bytes < self.most && self.since.elapsed() < PATIENCE
    }

    /// Adds a request that holds so many bytes and began to arrive at `since`. With it in, the batch takes no more than
    /// `most` bytes, or what it took before, if that is less.
    pub(super) fn push(&mut self, request: T, bytes: usize, most: usize, since: Instant) {
        if self.requests.is_empty() {
            self.since = since;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.most = self.most.min(most);
        self.requests.push(request);
    }

    /// Takes all requests out, in order; it begins anew. With each comes whether it ends the first half.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (T, bool)> + '_ {
        (self.bytes, self.most) = (0, MOST);
        let half = self.requests.len() / 2;
        self.requests.drain(..).enumerate().map(move |(number, request)| (request, number + 1 == half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 128 << 10;

    /// A batch of so many requests that is still young, however slow the machine is that runs this.
    fn batch(count: usize, most: usize) -> Batch<usize> {
        let mut batch = Batch::new();
        (0..count).for_each(|number| batch.push(number, LEN, most, Instant::now()));
        batch.since = Instant::now();
        batch
    }

    #[test]
    fn a_batch_takes_what_is_at_hand_up_to_its_bound() {
        assert!(batch(0, MOST).goes_on(false), "an empty one takes whatever comes");
        assert!(!batch(7, MOST).goes_on(false), "for others nobody waits");
        for (most, count) in [(MOST, 8), (MOST_WITH_READS, 2)] {
            assert!(batch(count - 1, most).goes_on(true) && !batch(count, most).goes_on(true), "{most}");
        }
    }

    #[test]
    fn one_read_among_writes_bounds_them_all() {
        let mut mixed = batch(1, MOST);
        mixed.push(1, LEN, MOST_WITH_READS, Instant::now());
        assert!(!mixed.goes_on(true));
        assert_eq!(mixed.take().count(), 2);
        mixed.push(0, LEN, MOST, Instant::now());
        mixed.push(1, LEN, MOST, Instant::now());
        mixed.since = Instant::now();
        assert!(mixed.goes_on(true), "it begins anew");
    }

    #[test]
    fn a_batch_ends_when_it_is_old() {
        let mut old = Batch::new();
        old.push(0, LEN, MOST, Instant::now().checked_sub(PATIENCE).unwrap());
        assert!(!old.goes_on(true));
    }

    #[test]
    fn the_first_half_is_told_in_order() {
        let halves = |count| batch(count, MOST).take().collect::<Vec<_>>();
        assert_eq!(halves(1), [(0, false)]);
        assert_eq!(halves(2), [(0, true), (1, false)]);
        assert_eq!(halves(5), [(0, false), (1, true), (2, false), (3, false), (4, false)]);
    }
}
