//! TLS on a [`super::Stream`]: the server's side, X.509 certificates on both sides.
//!
//! Guarantees: a session exists only after a whole handshake in which the client proved that it holds
//! the key of a certificate signed by the configured authority; TLS 1.2 or 1.3; no session is resumed,
//! so that every connection is verified anew. Not its business: which export the client may have.

#[cfg(not(feature = "aws-lc"))]
mod absent;
#[cfg(feature = "aws-lc")]
mod certificate;
#[cfg(feature = "aws-lc")]
mod config;
#[cfg(feature = "aws-lc")]
mod session;

#[cfg(not(feature = "aws-lc"))]
pub(super) use absent::Session;
#[cfg(not(feature = "aws-lc"))]
pub use absent::TlsConfig;
#[cfg(feature = "aws-lc")]
pub use config::TlsConfig;
#[cfg(feature = "aws-lc")]
pub(super) use session::Session;
