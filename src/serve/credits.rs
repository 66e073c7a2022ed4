//! [`Credits`]: bounds what one connection may have in flight, in requests and in bytes.
//!
//! A request is admitted whole, before its payload is received, and in the order of arrival; it gives
//! its credit back when its reply has left. Its memory comes from the connection's private share, or,
//! where there is no room, from the [`Budget`] that all connections share: so a connection goes on
//! even when others have used up all that is common. A request larger than the whole allowance is
//! admitted alone, so that no request waits for ever.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::budget::{Budget, Share};
use super::limits::{Limits, Shares};
use super::metrics::{Gauge, Metrics};

/// A connection's allowance.
pub(super) struct Credits {
    used: Mutex<Used>,
    given_back: Condvar,
    max_requests: usize,
    max_bytes: usize,
    private: usize,
    common: Arc<Budget>,
    metrics: Arc<Metrics>,
    export: usize,
}

#[derive(Default)]
struct Used {
    requests: usize,
    bytes: usize,
    private: usize,
    /// Threads that wait. To wake nobody costs a system call too, and there is mostly nobody.
    waiting: usize,
}

/// One admitted request's part; given back on drop.
pub(super) struct Credit {
    credits: Arc<Credits>,
    bytes: usize,
    /// `None`: from the private share.
    common: Option<Share>,
}

impl Credits {
    /// The allowance of one more connection, to the export at this place among the figures.
    pub(super) fn new(
        limits: &Limits,
        shares: Shares,
        common: &Arc<Budget>,
        metrics: &Arc<Metrics>,
        export: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            used: Mutex::default(),
            given_back: Condvar::new(),
            max_requests: limits.requests_per_connection,
            max_bytes: limits.bytes_per_connection,
            private: shares.private,
            common: Arc::clone(common),
            metrics: Arc::clone(metrics),
            export,
        })
    }

    /// Admits a request that holds `bytes` at once, if there is room.
    pub(super) fn try_admit(self: &Arc<Self>, bytes: usize) -> Option<Credit> {
        let mut used = self.lock();
        if !self.fits(&used, bytes) {
            return None;
        }
        if self.fits_privately(&used, bytes) {
            return Some(self.take(&mut used, bytes, None));
        }
        let share = self.common.try_take(bytes)?;
        Some(self.take(&mut used, bytes, Some(share)))
    }

    /// Admits a request that holds `bytes` as soon as there is room.
    pub(super) fn admit(self: &Arc<Self>, bytes: usize) -> Credit {
        let mut used = self.lock();
        let credit = loop {
            if self.fits(&used, bytes) {
                if self.fits_privately(&used, bytes) {
                    break self.take(&mut used, bytes, None);
                }
                if let Some(share) = self.common.take_in_turn(self, bytes) {
                    break self.take(&mut used, bytes, Some(share));
                }
            }
            used = self.wait(used);
        };
        drop(used);
        self.common.leave(self);
        credit
    }

    /// Waits until nothing is in flight any more.
    pub(super) fn wait_until_idle(&self) {
        let mut used = self.lock();
        while used.requests > 0 {
            used = self.wait(used);
        }
    }

    /// Has the connection's thread look again whether there is room.
    pub(super) fn wake(&self) {
        // Who has just looked and is about to wait holds the lock until it waits.
        drop(self.lock());
        self.given_back.notify_all();
    }

    /// Waits until something was given back.
    fn wait<'a>(&self, mut used: MutexGuard<'a, Used>) -> MutexGuard<'a, Used> {
        used.waiting += 1;
        let mut used = self.given_back.wait(used).unwrap_or_else(PoisonError::into_inner);
        used.waiting -= 1;
        used
    }

    fn fits(&self, used: &Used, bytes: usize) -> bool {
        used.requests == 0
            || (used.requests < self.max_requests && used.bytes.saturating_add(bytes) <= self.max_bytes)
    }

    fn fits_privately(&self, used: &Used, bytes: usize) -> bool {
        used.private.saturating_add(bytes) <= self.private
    }

    fn take(self: &Arc<Self>, used: &mut Used, bytes: usize, common: Option<Share>) -> Credit {
        used.requests += 1;
        used.bytes = used.bytes.saturating_add(bytes);
        if common.is_none() {
            used.private += bytes;
        }
        self.memory(common.is_none()).add(bytes as u64);
        self.metrics.exports[self.export].in_flight.add(1);
        Credit { credits: Arc::clone(self), bytes, common }
    }

    /// The figure of the share that a request's memory is from.
    fn memory(&self, private: bool) -> &Gauge {
        if private { &self.metrics.memory_private } else { &self.metrics.memory_common }
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        let mut used = self.credits.lock();
        used.requests = used.requests.saturating_sub(1);
        used.bytes = used.bytes.saturating_sub(self.bytes);
        if self.common.is_none() {
            used.private = used.private.saturating_sub(self.bytes);
        }
        let somebody_waits = used.waiting > 0;
        drop(used);
        self.credits.memory(self.common.is_none()).sub(self.bytes as u64);
        self.credits.metrics.exports[self.credits.export].in_flight.sub(1);
        if somebody_waits {
            self.credits.given_back.notify_all();
        }
        // What was common goes back after this, with `self.common`.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    /// The allowance of one connection that has nothing of its own beyond `private` bytes.
    fn connection(private: usize, common: &Arc<Budget>) -> Arc<Credits> {
        let limits = Limits { requests_per_connection: 3, bytes_per_connection: 100, ..Limits::default() };
        let metrics = Arc::new(Metrics::new(["disk"].into_iter()));
        Credits::new(&limits, Shares { private, common: 0 }, common, &metrics, 0)
    }

    /// Admits on a thread of its own; the credit arrives when there was room.
    fn admit_later(credits: &Arc<Credits>, bytes: usize) -> Receiver<Credit> {
        let (sender, receiver) = channel();
        let credits = Arc::clone(credits);
        std::thread::spawn(move || sender.send(credits.admit(bytes)));
        receiver
    }

    fn wait_for_queue(budget: &Budget, len: usize) {
        while budget.waiting() != len {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn the_allowance_bounds_requests_and_bytes() {
        let credits = connection(0, &Budget::new(1000));
        let first = credits.try_admit(60).unwrap();
        assert!(credits.try_admit(41).is_none());
        let _second = credits.try_admit(40).unwrap();
        let _third = credits.try_admit(0).unwrap();
        assert!(credits.try_admit(0).is_none(), "three requests are the limit");
        drop(first);
        assert!(credits.try_admit(60).is_some());
    }

    #[test]
    fn a_request_above_the_allowance_is_admitted_alone() {
        let budget = Budget::new(1000);
        let credits = connection(0, &budget);
        let large = credits.admit(5000);
        assert!(credits.try_admit(0).is_none());
        assert!(connection(0, &budget).try_admit(1).is_none(), "and alone on the whole server");
        drop(large);
        credits.wait_until_idle();
        let waiting = credits.try_admit(50).unwrap();
        let second = admit_later(&credits, 80);
        drop(waiting);
        drop(second.recv_timeout(SOON).unwrap());
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_private_no_other_connection_can_use_up() {
        let budget = Budget::new(100);
        let (greedy, modest) = (connection(10, &budget), connection(10, &budget));
        let _all = greedy.try_admit(100).unwrap();
        let ten = modest.try_admit(10).unwrap();
        assert!(modest.try_admit(1).is_none());
        // What waits for the common share takes the private one as soon as that has room.
        let one = admit_later(&modest, 1);
        wait_for_queue(&budget, 1);
        drop(ten);
        let one = one.recv_timeout(SOON).unwrap();
        assert!(one.common.is_none());
        wait_for_queue(&budget, 0);
    }

    #[test]
    fn a_large_request_is_not_passed_by_small_ones() {
        let budget = Budget::new(100);
        let [holder, large, small] = std::array::from_fn(|_| connection(0, &budget));
        let held = holder.try_admit(50).unwrap();
        let first = admit_later(&large, 90);
        wait_for_queue(&budget, 1);
        let second = admit_later(&small, 20);
        wait_for_queue(&budget, 2);
        assert!(holder.try_admit(1).is_none(), "there is room, but others wait for it");
        drop(held);
        let first = first.recv_timeout(SOON).unwrap();
        assert!(second.try_recv().is_err() && budget.used() == 90);
        drop(first);
        drop(second.recv_timeout(SOON).unwrap());
        assert_eq!((budget.used(), budget.waiting()), (0, 0));
    }

    /// Whoever is woken and leaves the queue lets the next one try, so that room is never left unused.
    #[test]
    fn the_queue_runs_empty_as_far_as_there_is_room() {
        let budget = Budget::new(100);
        let holder = connection(0, &budget);
        let held = holder.try_admit(100).unwrap();
        let connections: Vec<_> = (0..10).map(|_| connection(0, &budget)).collect();
        let waiting: Vec<_> = connections.iter().map(|credits| admit_later(credits, 10)).collect();
        wait_for_queue(&budget, 10);
        drop(held);
        let credits: Vec<_> = waiting.iter().map(|credit| credit.recv_timeout(SOON).unwrap()).collect();
        assert_eq!(budget.used(), 100);
        drop(credits);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn connections_that_want_more_than_there_is_come_to_an_end() {
        let budget = Budget::new(100);
        std::thread::scope(|scope| {
            for seed in 0..8_usize {
                let credits = connection(seed, &budget);
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for step in 0..2000_usize {
                        let bytes = (step * 31 + seed * 17) % 90;
                        // What a session does: it gives back what is ready before it waits.
                        let credit = credits.try_admit(bytes).unwrap_or_else(|| {
                            held.clear();
                            credits.admit(bytes)
                        });
                        held.push(credit);
                        if step % 3 == 0 {
                            held.clear();
                        }
                    }
                });
            }
        });
        assert_eq!((budget.used(), budget.waiting()), (0, 0));
    }
}
