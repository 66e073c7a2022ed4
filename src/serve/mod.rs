//! The NBD server: listeners, sessions and workers around the protocol core.
//!
//! A connection has a thread that reads requests and, as long as the disk answers at memory speed, carries
//! them out itself; while there are CPUs for it, a few such threads take turns at reading, so that large
//! requests are carried out side by side. What would make a thread wait goes to the workers that all
//! connections share. Replies gather in the connection's outbox and leave many to a system call.
//!
//! ```text
//! socket -> receiver -> nbd::Transmission -> crew -+-> execute (same thread) -+-> outbox -> socket
//!                                                  +-> workers -> execute ----+
//! ```

mod access;
mod batch;
mod budget;
mod busy;
mod credits;
mod crew;
mod ending;
mod execute;
mod limits;
mod metrics;
mod negotiate;
mod outbox;
mod pace;
mod placement;
mod polling;
mod receiver;
mod refusals;
mod registry;
pub mod sandbox;
mod server;
mod session;
mod workers;
mod zeroes;

pub use access::{Access, ClientRule, group};
pub use limits::Limits;
pub use server::{Front, Offer, Options, Server, Service, Stopper};
