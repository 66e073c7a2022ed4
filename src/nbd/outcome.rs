//! How a handshake ends: [`Negotiated`], a session, or a [`CloseReason`].

use std::fmt;
use std::sync::Arc;

use super::command::Form;
use super::export::Export;
use super::reply::Replies;
use super::transmission::Transmission;

/// What client and server agreed on.
#[derive(Clone, Debug)]
pub struct Negotiated {
    /// The export's place among [`super::Exports`].
    pub index: usize,
    /// The export.
    pub export: Arc<Export>,
    /// The form of all requests and replies.
    pub form: Form,
    /// The id of `base:allocation`, if it was chosen for this very export.
    pub meta_allocation: Option<u32>,
}

impl Negotiated {
    /// The judge of this session's requests.
    pub fn transmission(&self) -> Transmission {
        Transmission::new(self)
    }

    /// The builder of this session's replies.
    pub fn replies(&self) -> Replies {
        Replies::new(self.form)
    }

    /// The transmission flags that the client is told.
    pub(super) fn transmission_flags(&self) -> u16 {
        self.export.transmission_flags(self.form, self.meta_allocation.is_some())
    }
}

/// Why the server closes a connection. Numbers only: a client's strings never reach a log by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The client sent `NBD_OPT_ABORT`. No fault of anybody's.
    Aborted,
    /// The client set flags that the server did not offer.
    UnknownClientFlags(u32),
    /// A client without fixed newstyle sent another option than `EXPORT_NAME`.
    NotFixedNewstyle(u32),
    /// What should be an option does not begin like one.
    BadOptionMagic(u64),
    /// An option with more data than is worth reading to its end.
    OptionTooLong {
        /// The option.
        option: u32,
        /// The length that its header announced, in bytes.
        len: u32,
    },
    /// More options than any client needs.
    TooManyOptions,
    /// `EXPORT_NAME`, which cannot be answered with an error, asked for what does not exist.
    ExportRefused,
    /// `EXPORT_NAME`, which cannot be answered with an error, came before TLS on a server that demands it.
    TlsRequired,
    /// More input lay behind STARTTLS, in plaintext.
    PlaintextBehindStartTls,
    /// `EXPORT_NAME`, which cannot be answered with an error, came after extended headers were chosen.
    ExtendedExportName,
    /// The server is about to stop.
    ShuttingDown,
    /// What should be a request does not begin like one.
    BadRequestMagic(u32),
    /// A request with more payload, in bytes, than any may have.
    PayloadTooLong(u64),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted => f.write_str("the client ended the negotiation"),
            Self::UnknownClientFlags(flags) => write!(f, "the client set unknown flags ({flags:#x})"),
            Self::NotFixedNewstyle(option) => {
                write!(f, "the client sent option {option} without fixed newstyle negotiation")
            }
            Self::BadOptionMagic(magic) => write!(f, "{magic:#018x} is not the start of an option"),
            Self::OptionTooLong { option, len } => {
                write!(f, "the client sent option {option} with {len} bytes of data")
            }
            Self::TooManyOptions => f.write_str("the client sent too many options"),
            Self::ExportRefused => f.write_str("the client asked for an export that does not exist"),
            Self::TlsRequired => f.write_str("the client asked for an export without TLS"),
            Self::PlaintextBehindStartTls => {
                f.write_str("more followed the request to begin TLS before that was answered")
            }
            Self::ExtendedExportName => {
                f.write_str("the client chose extended headers and then asked for an export without GO")
            }
            Self::ShuttingDown => f.write_str("the server is shutting down"),
            Self::BadRequestMagic(magic) => write!(f, "{magic:#010x} is not the start of a request"),
            Self::PayloadTooLong(len) => write!(f, "the client announced {len} bytes of payload"),
        }
    }
}
