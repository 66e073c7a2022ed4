//! The server over a real socket, with a client that misbehaves where real ones cannot: what they can
//! show is in tests/peers. One file a topic.

// The house's lints allow these in test functions; all that is here serves nothing else.
#![allow(clippy::unwrap_used, clippy::panic)]

mod client;
mod harness;
mod process;

mod faults;
mod forms;
mod handshake;
mod huge;
mod process_faults;
mod transmission;
mod zeroes;
