//! [`Busy`]: counts the threads of all connections, and those of them that are awake, to compare them
//! with the CPUs.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The threads of all connections in transmission.
pub(super) struct Busy {
    threads: AtomicUsize,
    /// Those that wait for something to do.
    asleep: AtomicUsize,
    cpus: usize,
}

/// A counted thread; counts no more on drop.
pub(super) struct Counted<'a>(&'a Busy);

/// A counted thread that waits; is awake again on drop.
pub(super) struct Asleep<'a>(&'a Busy);

impl Busy {
    pub(super) fn new(cpus: usize) -> Self {
        Self { threads: AtomicUsize::new(0), asleep: AtomicUsize::new(0), cpus }
    }

    /// Counts a connection's first thread.
    pub(super) fn enter(&self) -> Counted<'_> {
        self.threads.fetch_add(1, Ordering::Relaxed);
        Counted(self)
    }

    /// Counts one more, if there is a CPU for it.
    pub(super) fn try_enter(&self) -> Option<Counted<'_>> {
        let one_more = |threads| (threads < self.cpus).then_some(threads + 1);
        self.threads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Counted(self))
    }

    /// Notes that a counted thread waits from now on.
    pub(super) fn sleep(&self) -> Asleep<'_> {
        self.asleep.fetch_add(1, Ordering::Relaxed);
        Asleep(self)
    }

    /// Whether there are more threads than CPUs.
    pub(super) fn is_crowded(&self) -> bool {
        self.threads.load(Ordering::Relaxed) > self.cpus
    }

    /// Whether each thread that is awake leaves a CPU to the client that it works for.
    pub(super) fn leaves_room(&self) -> bool {
        let threads = self.threads.load(Ordering::Relaxed);
        threads.saturating_sub(self.asleep.load(Ordering::Relaxed)) <= self.cpus / 2
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.threads.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.asleep.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_added_only_while_there_are_cpus_for_them() {
        let busy = Busy::new(2);
        let first = busy.enter();
        let second = busy.try_enter();
        assert!(second.is_some() && !busy.is_crowded() && busy.try_enter().is_none());
        let another = busy.enter();
        assert!(busy.is_crowded(), "a connection's first thread is never refused");
        drop((first, second));
        assert!(!busy.is_crowded() && busy.try_enter().is_some());
        drop(another);
    }

    #[test]
    fn half_of_the_cpus_are_for_clients() {
        let busy = Busy::new(5);
        let threads: Vec<_> = (0..3).map(|_| busy.enter()).collect();
        assert!(!busy.leaves_room());
        let asleep = busy.sleep();
        assert!(busy.leaves_room());
        drop(asleep);
        assert!(!busy.leaves_room());
        drop(threads);
        assert!(busy.leaves_room());
        let (one, _counted) = (Busy::new(1), busy.enter());
        let _counted = one.enter();
        assert!(!one.leaves_room(), "who polls on the only CPU keeps the client from it");
    }
}
