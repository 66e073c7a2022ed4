//! The NBD protocol without any I/O: bytes in, decisions and bytes out. proto.md of the
//! `NetworkBlockDevice` project is what it follows, and above every rule stands the section it is from.
//!
//! A session has two phases, and this room has one type for each.
//!
//! # Handshake
//!
//! A [`Handshake`] goes by value from state to state. [`Handshake::step`] looks at everything that was
//! received and is not yet consumed, and says what to do; the state that it was called on is gone, so
//! that nobody can go on from an old one.
//!
//! ```text
//!            client flags             EXPORT_NAME or GO that succeeds
//! greeting ───────────────► options ────────────────────────────────► Step::Ready(Negotiated)
//!                           │  ▲  │
//!         an option whose   │  │  │ ABORT, a broken rule, a limit
//!         data nobody wants ▼  │  └────────────────────────────────► Step::Close(CloseReason)
//!                          discard
//! ```
//!
//! Where TLS is required ([`TlsMode`]), nothing but STARTTLS and ABORT gets further than an error before it
//! has begun. [`Step::StartTls`] then takes the handshake away and leaves an [`AwaitingTls`], which has
//! forgotten everything but the client's flags; what comes out of [`AwaitingTls::secured`] is a fresh
//! [`Handshake`] about those exports that this client may see ([`Exports::visible`]).
//!
//! Wherever the input ends too early, the answer is [`Step::NeedMore`] and nothing is consumed. An
//! option is gathered whole up to 16 KiB ([`MAX_BUFFERED`] with its header); longer ones, and unknown
//! ones, are discarded as they arrive and then answered with an error, up to 1 MiB; beyond that the
//! connection is closed. An option's own rules are in `options/`.
//!
//! ```
//! use std::sync::Arc;
//! use hostveil::nbd::{CloseReason, Exports, Handshake, Step, TlsMode};
//!
//! let (mut state, greeting) = Handshake::new(Arc::new(Exports::default()), TlsMode::Off);
//! assert_eq!(&greeting[..8], b"NBDMAGIC");
//! // What the client sent: its flags (fixed newstyle), then NBD_OPT_ABORT without data.
//! let mut input: &[u8] = b"\0\0\0\x01IHAVEOPT\0\0\0\x02\0\0\0\0";
//! let reason = loop {
//!     match state.step(input) {
//!         Step::NeedMore { .. } => unreachable!("here one reads more"),
//!         Step::Reply { state: next, consumed, .. } => {
//!             input = &input[consumed..]; // and here one sends what is to be sent
//!             state = next;
//!         }
//!         Step::StartTls { .. } => unreachable!("here one begins TLS"),
//!         Step::Ready { .. } => unreachable!("here the transmission phase begins"),
//!         Step::Close { reason, .. } => break reason,
//!     }
//! };
//! assert_eq!(reason, CloseReason::Aborted);
//! ```
//!
//! # Transmission
//!
//! [`Negotiated`] yields two things. [`Transmission::admit`] judges each request's header, whose length
//! depends on the session's [`Form`]:
//!
//! ```text
//!          ┌► Accept(Request)  for a WRITE read its payload; carry it out; reply with Replies
//!          ├► Filter(Filtered) read 12 bytes more, and ask again ([`Filtered::admit`])
//!  header ─┼► Refuse(Refusal)  throw `drain` bytes away; reply with Replies::error
//!          └► Close            the stream is out of step
//! ```
//!
//! [`Replies`] builds the answers, always in the form that was negotiated, and [`errno()`] turns an error
//! of this library into the number that the client sees. Neither allocates.

mod command;
mod errno;
mod export;
mod handshake;
mod options;
mod outcome;
mod reply;
mod starttls;
mod transmission;
pub mod wire;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod testing;

pub use command::{Command, Echo, Form, Request};
pub use errno::{NbdErrno, errno};
pub use export::{Export, Exports};
pub use handshake::{Handshake, MAX_BUFFERED, MAX_DISCARDED, MAX_OPTION_DATA, MAX_OPTIONS, Step};
pub use outcome::{CloseReason, Negotiated};
pub use reply::{Chunks, Header, Replies};
pub use starttls::{AwaitingTls, TlsMode};
pub use transmission::{Admission, Filtered, Refusal, Transmission};
