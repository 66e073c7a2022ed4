//! Sockets: streams that send and receive vectored, and listeners on Unix sockets and TCP.
//!
//! Nothing here knows the NBD protocol. TLS and peer credentials belong here when they come.

mod listener;
mod stream;

pub use listener::{Address, Listener};
pub use stream::{Patience, Stream};
