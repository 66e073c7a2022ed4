//! [`Credits`]: bounds what one connection may have in flight, in requests and in bytes.
//!
//! A request is admitted whole, before its payload is received, and in the order of arrival; it gives
//! its credit back when its reply has left. A request larger than the whole allowance is admitted
//! alone, so that no request waits for ever.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A connection's allowance.
pub(super) struct Credits {
    used: Mutex<Used>,
    given_back: Condvar,
    max_requests: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct Used {
    requests: usize,
    bytes: usize,
}

/// One admitted request's share; given back on drop.
pub(super) struct Credit {
    credits: Arc<Credits>,
    bytes: usize,
}

impl Credits {
    pub(super) fn new(max_requests: usize, max_bytes: usize) -> Arc<Self> {
        let used = Mutex::new(Used::default());
        Arc::new(Self { used, given_back: Condvar::new(), max_requests, max_bytes })
    }

    /// Admits a request of `bytes` at once, if there is room.
    pub(super) fn try_admit(self: &Arc<Self>, bytes: usize) -> Option<Credit> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.fits(&used, bytes).then(|| self.take(&mut used, bytes))
    }

    /// Admits a request of `bytes` as soon as there is room.
    pub(super) fn admit(self: &Arc<Self>, bytes: usize) -> Credit {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.given_back.wait_while(used, |used| !self.fits(used, bytes));
        self.take(&mut waited.unwrap_or_else(PoisonError::into_inner), bytes)
    }

    /// Waits until nothing is in flight any more.
    pub(super) fn wait_until_idle(&self) {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.given_back.wait_while(used, |used| used.requests > 0));
    }

    fn fits(&self, used: &Used, bytes: usize) -> bool {
        used.requests == 0
            || (used.requests < self.max_requests && used.bytes.saturating_add(bytes) <= self.max_bytes)
    }

    fn take(self: &Arc<Self>, used: &mut Used, bytes: usize) -> Credit {
        used.requests += 1;
        used.bytes = used.bytes.saturating_add(bytes);
        Credit { credits: Arc::clone(self), bytes }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        let mut used = self.credits.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.requests = used.requests.saturating_sub(1);
        used.bytes = used.bytes.saturating_sub(self.bytes);
        drop(used);
        self.credits.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allowance_bounds_requests_and_bytes() {
        let credits = Credits::new(3, 100);
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
        let credits = Credits::new(3, 100);
        let large = credits.admit(5000);
        assert!(credits.try_admit(0).is_none() || credits.used.lock().unwrap().bytes >= 5000);
        drop(large);
        credits.wait_until_idle();
        let waiting = credits.try_admit(50).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| drop(credits.admit(80)));
            drop(waiting);
            second.join().unwrap();
        });
    }
}
