//! Numbers that several threads change, with a [scheduler](super::scheduler) before them.

use std::sync::atomic::Ordering;

use super::scheduler::point;

/// A [`std::sync::atomic::AtomicU64`].
#[derive(Debug, Default)]
pub(crate) struct AtomicU64 {
    inner: std::sync::atomic::AtomicU64,
}

impl AtomicU64 {
    pub(crate) const fn new(value: u64) -> Self {
        Self { inner: std::sync::atomic::AtomicU64::new(value) }
    }

    pub(crate) fn load(&self, order: Ordering) -> u64 {
        point();
        self.inner.load(order)
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        point();
        self.inner.store(value, order);
    }

    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        point();
        self.inner.fetch_add(value, order)
    }

    pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        point();
        self.inner.fetch_sub(value, order)
    }

    pub(crate) fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        change: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        point();
        self.inner.fetch_update(set, fetch, change)
    }
}

/// A [`std::sync::atomic::AtomicBool`].
#[derive(Debug, Default)]
pub(crate) struct AtomicBool {
    inner: std::sync::atomic::AtomicBool,
}

impl AtomicBool {
    pub(crate) const fn new(value: bool) -> Self {
        Self { inner: std::sync::atomic::AtomicBool::new(value) }
    }

    pub(crate) fn load(&self, order: Ordering) -> bool {
        point();
        self.inner.load(order)
    }

    pub(crate) fn swap(&self, value: bool, order: Ordering) -> bool {
        point();
        self.inner.swap(value, order)
    }
}
