//! Locks and condition variables with a [scheduler](super::scheduler) before them.
//!
//! Guaranteed: a task that has to wait gives its turn away and does not hold up the thread that all tasks
//! share. Where a writer waits, readers that come later wait for it, as they do on Linux: a thread that
//! takes a lock for reading twice is found.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};

use super::scheduler::present;

fn address<T>(of: &T) -> usize {
    std::ptr::from_ref(of).addr()
}

/// Tells the scheduler, after the guard before it is gone, that a lock is free.
struct Released(usize);

impl Drop for Released {
    fn drop(&mut self) {
        if let Some(scheduler) = present() {
            scheduler.release(self.0);
        }
    }
}

/// What came of a try: the lock, or nothing yet.
fn taken<G>(tried: TryLockResult<G>) -> Option<LockResult<G>> {
    match tried {
        Ok(guard) => Some(Ok(guard)),
        Err(TryLockError::Poisoned(poisoned)) => Some(Err(poisoned)),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Takes the lock `what` in the present task's turn: `now` tries to, `else_wait` is what the thread does
/// that has no scheduler.
fn take<G>(
    what: usize,
    now: impl Fn() -> Option<LockResult<G>>,
    else_wait: impl FnOnce() -> LockResult<G>,
) -> LockResult<G> {
    let Some(scheduler) = present() else { return else_wait() };
    scheduler.point();
    loop {
        if let Some(guard) = now() {
            return guard;
        }
        scheduler.enlist(what);
        scheduler.sleep();
    }
}

/// The guard of one kind in that of another, poisoned or not.
fn wrapped<G, W>(result: LockResult<G>, wrap: impl Fn(G) -> W) -> LockResult<W> {
    match result {
        Ok(guard) => Ok(wrap(guard)),
        Err(poisoned) => Err(PoisonError::new(wrap(poisoned.into_inner()))),
    }
}

/// A [`std::sync::Mutex`].
#[derive(Default)]
pub(crate) struct Mutex<T> {
    inner: std::sync::Mutex<T>,
}

/// A [`std::sync::MutexGuard`].
pub(crate) struct MutexGuard<'a, T> {
    guard: std::sync::MutexGuard<'a, T>,
    released: Released,
    lock: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { inner: std::sync::Mutex::new(value) }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let result = take(address(self), || taken(self.inner.try_lock()), || self.inner.lock());
        wrapped(result, |guard| self.guarded(guard))
    }

    fn guarded<'a>(&'a self, guard: std::sync::MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        MutexGuard { guard, released: Released(address(self)), lock: self }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// A [`std::sync::Condvar`].
#[derive(Default)]
pub(crate) struct Condvar {
    inner: std::sync::Condvar,
}

impl Condvar {
    pub(crate) const fn new() -> Self {
        Self { inner: std::sync::Condvar::new() }
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        let MutexGuard { guard, released, lock } = guard;
        let Some(scheduler) = present() else {
            return wrapped(self.inner.wait(guard), |guard| lock.guarded(guard));
        };
        scheduler.enlist(address(self));
        drop(guard);
        drop(released);
        scheduler.sleep();
        lock.lock()
    }

    pub(crate) fn notify_all(&self) {
        self.inner.notify_all();
        if let Some(scheduler) = present() {
            scheduler.release(address(self));
        }
    }
}

/// A [`std::sync::RwLock`].
#[derive(Default)]
pub(crate) struct RwLock<T> {
    inner: std::sync::RwLock<T>,
    /// Tasks that wait to write.
    writers: AtomicUsize,
}

/// A [`std::sync::RwLockReadGuard`].
pub(crate) struct RwLockReadGuard<'a, T> {
    guard: std::sync::RwLockReadGuard<'a, T>,
    _released: Released,
}

/// A [`std::sync::RwLockWriteGuard`].
pub(crate) struct RwLockWriteGuard<'a, T> {
    guard: std::sync::RwLockWriteGuard<'a, T>,
    _released: Released,
}

impl<T> RwLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { inner: std::sync::RwLock::new(value), writers: AtomicUsize::new(0) }
    }

    pub(crate) fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        let now = || match self.writers.load(Ordering::Relaxed) {
            0 => taken(self.inner.try_read()),
            _ => None,
        };
        let result = take(address(self), now, || self.inner.read());
        wrapped(result, |guard| RwLockReadGuard { guard, _released: Released(address(self)) })
    }

    pub(crate) fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        let waits = Waits { writers: &self.writers, one: std::cell::Cell::new(0) };
        let now = || taken(self.inner.try_write()).or_else(|| waits.for_the_lock());
        let result = take(address(self), now, || self.inner.write());
        drop(waits);
        wrapped(result, |guard| RwLockWriteGuard { guard, _released: Released(address(self)) })
    }
}

/// A task that may wait to write, and no longer does when this is dropped.
struct Waits<'a> {
    writers: &'a AtomicUsize,
    one: std::cell::Cell<usize>,
}

impl Waits<'_> {
    fn for_the_lock<G>(&self) -> Option<G> {
        self.writers.fetch_add(1 - self.one.replace(1), Ordering::Relaxed);
        None
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.writers.fetch_sub(self.one.get(), Ordering::Relaxed);
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}
