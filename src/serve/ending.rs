//! [`Ended`]: why a connection is over, and how that is told.

use std::borrow::Cow;
use std::io;

use crate::nbd::CloseReason;
use crate::net::Stream;

use super::refusals::{Kind, Peer};
use super::server::Shared;

/// Why a connection is over.
pub(super) enum Ended {
    /// As it should be, or nearly so: the client left, or the server stops.
    Well(&'static str),
    /// The server did not go on with it.
    Refused(Kind, Cow<'static, str>),
}

impl Ended {
    /// The server did not go on, for a reason that never differs.
    pub(super) fn refused(kind: Kind, why: &'static str) -> Self {
        Self::Refused(kind, Cow::Borrowed(why))
    }
}

impl From<CloseReason> for Ended {
    fn from(reason: CloseReason) -> Self {
        let kind = match reason {
            CloseReason::Aborted => return Self::Well("the client ended the negotiation"),
            CloseReason::ShuttingDown => return Self::Well("the server is shutting down"),
            CloseReason::ExportRefused => Kind::Export,
            CloseReason::TlsRequired => Kind::TlsRequired,
            CloseReason::BadRequestMagic(_) | CloseReason::PayloadTooLong(_) => Kind::Protocol,
            CloseReason::UnknownClientFlags(_)
            | CloseReason::NotFixedNewstyle(_)
            | CloseReason::BadOptionMagic(_)
            | CloseReason::OptionTooLong { .. }
            | CloseReason::TooManyOptions
            | CloseReason::ExtendedExportName
            | CloseReason::PlaintextBehindStartTls => Kind::Handshake,
        };
        Self::Refused(kind, reason.to_string().into())
    }
}

/// Tells how the handshake of a connection ended, when nothing came of it. Of those that just go away
/// nothing is said unless somebody wants to know everything: they cost nobody anything but log lines.
pub(super) fn tell_handshake(shared: &Shared, stream: &Stream, ended: io::Result<Ended>) {
    let peer = stream.peer();
    match ended {
        Ok(Ended::Refused(kind, why)) => shared.refuse(Peer::of(stream), peer, None, kind, &why),
        Ok(Ended::Well(why)) => tracing::debug!(peer, "no client: {why}"),
        Err(error) => tracing::debug!(peer, "no client: {error}"),
    }
}

/// Tells how the connection of a client that had attached ended.
pub(super) fn tell_client(shared: &Shared, stream: &Stream, export: &str, ended: io::Result<Ended>) {
    let peer = stream.peer();
    match ended {
        Ok(Ended::Refused(kind, why)) => shared.refuse(Peer::of(stream), peer, Some(export), kind, &why),
        Ok(Ended::Well(why)) => tracing::info!(peer, export, "connection ended: {why}"),
        Err(error) => tracing::warn!(peer, export, "connection ended: {error}"),
    }
}
