//! [`Budget`]: the memory that all connections' requests share, beyond each one's private share.
//!
//! Whoever finds no room stands in a queue, and nobody passes it: a large request is not starved by
//! small ones. A request takes its whole share before its payload is received, so that nothing in
//! flight ever waits for more: what is in flight comes to an end, by itself or by a deadline, and the
//! queue moves on. With nothing in flight the first in the queue is served, whatever it asks for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::credits::Credits;

/// The common share of a server.
pub(super) struct Budget {
    state: Mutex<State>,
    total: usize,
}

#[derive(Default)]
struct State {
    used: usize,
    /// A connection stands here at most once: its own thread alone admits its requests.
    queue: VecDeque<Waiting>,
}

struct Waiting {
    connection: Arc<Credits>,
    bytes: usize,
}

/// Some of the budget; given back on drop.
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// A budget of `total` bytes.
    pub(super) fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), total })
    }

    /// Takes `bytes`, if there is room and nobody waits for it.
    pub(super) fn try_take(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let mut state = self.lock();
        (state.queue.is_empty() && self.fits(&state, bytes)).then(|| self.take(&mut state, bytes))
    }

    /// Takes `bytes` if it is `connection`'s turn and there is room. Otherwise the connection stands in
    /// the queue from then on, is woken when it is worth another try, and must call [`Self::leave`] in
    /// the end, whatever came of it.
    pub(super) fn take_in_turn(self: &Arc<Self>, connection: &Arc<Credits>, bytes: usize) -> Option<Share> {
        let mut state = self.lock();
        let place = state.queue.iter().position(|waiting| Arc::ptr_eq(&waiting.connection, connection));
        if place.unwrap_or(state.queue.len()) == 0 && self.fits(&state, bytes) {
            return Some(self.take(&mut state, bytes));
        }
        if place.is_none() {
            state.queue.push_back(Waiting { connection: Arc::clone(connection), bytes });
        }
        None
    }

    /// Takes `connection` out of the queue, if it stands there, and lets the next one try. Not to be
    /// called with any connection's lock held.
    pub(super) fn leave(&self, connection: &Arc<Credits>) {
        self.lock().queue.retain(|waiting| !Arc::ptr_eq(&waiting.connection, connection));
        self.wake_next();
    }

    /// Bytes in use.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.lock().used
    }

    /// Connections that stand in the queue.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().queue.len()
    }

    fn wake_next(&self) {
        let state = self.lock();
        let next = state.queue.front().filter(|next| self.fits(&state, next.bytes));
        let next = next.map(|next| Arc::clone(&next.connection));
        drop(state);
        if let Some(connection) = next {
            connection.wake();
        }
    }

    fn fits(&self, state: &State, bytes: usize) -> bool {
        state.used == 0 || state.used.saturating_add(bytes) <= self.total
    }

    fn take(self: &Arc<Self>, state: &mut State, bytes: usize) -> Share {
        state.used = state.used.saturating_add(bytes);
        Share { budget: Arc::clone(self), bytes }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.used = state.used.saturating_sub(self.bytes);
        let somebody_waits = !state.queue.is_empty();
        drop(state);
        if somebody_waits {
            self.budget.wake_next();
        }
    }
}
