//! Sockets: streams that send and receive vectored, in clear or under TLS, listeners on Unix sockets
//! and TCP, and what is known of who is at the other end. Nothing here knows the NBD protocol.

mod identity;
mod listener;
mod service_manager;
mod stream;
mod tls;

pub use identity::{ClientCertificate, Credentials, Identity};
pub use listener::{Address, Listener};
pub use service_manager::{Notifier, inherited_listeners};
pub use stream::{Patience, Stream};
pub use tls::TlsConfig;
