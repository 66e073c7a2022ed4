//! Locks, condition variables and atomic numbers of the rooms whose races tests look for: the standard
//! library's, and nothing else.
//!
//! With the feature `schedules`, which only tests turn on, they are the standard library's with a
//! scheduler before them: on a thread that has given itself one (`under`), each lock that is taken,
//! each number that is read or changed, and each wait is a point at which the scheduler may go on with
//! another task. On all other threads nothing is different. What tests cannot see so is the memory order of
//! numbers: tasks follow one another, as if all were sequentially consistent.

#[cfg(not(feature = "schedules"))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64};
#[cfg(not(feature = "schedules"))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[cfg(feature = "schedules")]
mod atomics;
#[cfg(feature = "schedules")]
mod locks;
#[cfg(feature = "schedules")]
mod scheduler;

#[cfg(feature = "schedules")]
pub(crate) use atomics::{AtomicBool, AtomicU64};
#[cfg(feature = "schedules")]
pub(crate) use locks::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(feature = "schedules")]
pub use scheduler::{Scheduler, point, under};
