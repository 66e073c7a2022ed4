//! [`Registry`]: the connections that a server has, and how many of which kind it may have.
//!
//! Whoever has not finished the handshake has not shown that it is worth anything. Such connections
//! have places of their own, and the newest takes that of the oldest: so no number of silent ones keeps
//! a client out, and an attached client is never ended for another's sake.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::net::Stream;

use super::limits::Limits;

/// How long an ousted connection's thread may take to end before somebody else is turned away for it.
const OUSTED: Duration = Duration::from_secs(1);

/// A server's connections.
pub(super) struct Registry {
    state: Mutex<State>,
    one_ended: Condvar,
    connections: usize,
    handshakes: usize,
}

#[derive(Default)]
struct State {
    /// In the order in which they came.
    entries: BTreeMap<u64, Entry>,
    next: u64,
}

struct Entry {
    stream: Arc<Stream>,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Handshake,
    Ousted,
    Attached,
}

/// A connection's place; free again on drop.
pub(super) struct Place {
    registry: Arc<Registry>,
    id: u64,
}

impl Registry {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            one_ended: Condvar::new(),
            connections: limits.connections,
            handshakes: limits.handshakes.max(1),
        })
    }

    /// Gives a new connection a place for its handshake. `None`: it is turned away, because no more
    /// clients can attach.
    pub(super) fn enter(self: &Arc<Self>, stream: &Arc<Stream>) -> Option<Place> {
        let mut state = self.lock();
        if state.count(Phase::Attached) >= self.connections {
            return None;
        }
        if state.shaking_hands() >= self.handshakes {
            state.oust_the_oldest();
            let full = |state: &mut State| state.shaking_hands() >= self.handshakes;
            let waited = self.one_ended.wait_timeout_while(state, OUSTED, full);
            let (waited, time) = waited.unwrap_or_else(PoisonError::into_inner);
            if time.timed_out() {
                return None;
            }
            state = waited;
        }
        let id = state.next;
        state.next += 1;
        state.entries.insert(id, Entry { stream: Arc::clone(stream), phase: Phase::Handshake });
        Some(Place { registry: Arc::clone(self), id })
    }

    /// Connections of attached clients.
    pub(super) fn attached(&self) -> usize {
        self.lock().count(Phase::Attached)
    }

    /// Connections that are shaking hands.
    pub(super) fn shaking_hands(&self) -> usize {
        self.lock().shaking_hands()
    }

    /// Makes every connection see the end of its stream.
    pub(super) fn stop_receiving(&self) {
        self.lock().entries.values().for_each(|entry| entry.stream.stop_receiving());
    }

    /// Cuts every connection, and says how many there were.
    pub(super) fn hang_up(&self) -> usize {
        let state = self.lock();
        state.entries.values().for_each(|entry| entry.stream.hang_up());
        state.entries.len()
    }

    /// Waits until there is no connection any more, for `limit` at most. Says whether that is so.
    pub(super) fn wait_until_empty(&self, limit: Duration) -> bool {
        let some = |state: &mut State| !state.entries.is_empty();
        let waited = self.one_ended.wait_timeout_while(self.lock(), limit, some);
        waited.unwrap_or_else(PoisonError::into_inner).0.entries.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&self, phase: Phase) -> usize {
        self.entries.values().filter(|entry| entry.phase == phase).count()
    }

    /// Those that are ousted count until they are gone: so many threads and buffers there are.
    fn shaking_hands(&self) -> usize {
        self.entries.len() - self.count(Phase::Attached)
    }

    fn oust_the_oldest(&mut self) {
        if let Some(oldest) = self.entries.values_mut().find(|entry| entry.phase == Phase::Handshake) {
            oldest.phase = Phase::Ousted;
            oldest.stream.hang_up();
        }
    }
}

impl Place {
    /// The connection's number, for its thread's name.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Makes this an attached client's place, when the handshake is over. `false`: there is none left.
    pub(super) fn attach(&self) -> bool {
        let mut state = self.registry.lock();
        let free = state.count(Phase::Attached) < self.registry.connections;
        match state.entries.get_mut(&self.id) {
            Some(entry) if free && entry.phase == Phase::Handshake => {
                entry.phase = Phase::Attached;
                true
            }
            _ => false,
        }
    }

    /// Whether the connection had to make room for another.
    pub(super) fn is_ousted(&self) -> bool {
        self.registry.lock().entries.get(&self.id).is_some_and(|entry| entry.phase == Phase::Ousted)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.lock().entries.remove(&self.id);
        self.registry.one_ended.notify_all();
    }
}
