//! The handshake of a connection: what the protocol core decides, carried out on a stream, with TLS in
//! the middle of it where the server demands that.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::nbd::wire::{NBD_REP_ERR_POLICY, NBD_REP_ERR_TLS_REQD, NBD_REP_ERR_UNKNOWN};
use crate::nbd::{AwaitingTls, Exports, Handshake, Negotiated, Step, TlsMode};
use crate::net::Stream;

use super::ending::Ended;
use super::receiver::Receiver;
use super::refusals::{Kind, Peer};
use super::registry::Place;
use super::server::{Offer, Shared};

/// Runs the handshake. The inner error is why there is nothing to serve.
pub(super) fn negotiate(
    shared: &Shared,
    offer: &Offer,
    stream: &Stream,
    place: &Place,
    receiver: &mut Receiver,
) -> io::Result<Result<Negotiated, Ended>> {
    let began = Instant::now();
    let (mut state, greeting) = match shared.tls {
        None => Handshake::new(visible(shared, offer, stream), TlsMode::Off),
        // Nothing is there for a client who has not shown who it is.
        Some(_) => Handshake::new(Arc::new(Exports::default()), TlsMode::Required),
    };
    stream.send_all(&greeting)?;
    let mut at_least = 1;
    loop {
        let left = shared.limits.handshake.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Ok(Err(Ended::refused(Kind::HandshakeTimeout, "the handshake took too long")));
        }
        stream.set_receive_deadline(Some(left))?;
        match receiver.fill(at_least) {
            Ok(true) => {}
            Ok(false) => return Ok(Err(Ended::Well("the client left during the handshake"))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        }
        if shared.stopper.is_stopping() {
            state = state.shutting_down();
        }
        match state.step(receiver.buffered()) {
            Step::NeedMore { state: next, at_least: wanted } => (state, at_least) = (next, wanted),
            Step::Reply { state: next, consumed, bytes } => {
                receiver.consume(consumed);
                if let Some((kind, why)) = refused_option(&bytes) {
                    shared.refuse(Peer::of(stream), stream.peer(), None, kind, &why);
                }
                stream.send_all(&bytes)?;
                (state, at_least) = (next, 1);
            }
            Step::StartTls { consumed, bytes, state: next } => {
                receiver.consume(consumed);
                stream.send_all(&bytes)?;
                match secure(shared, offer, stream, next, left) {
                    Ok(next) => (state, at_least) = (next, 1),
                    Err(ended) => return Ok(Err(ended)),
                }
            }
            Step::Ready { consumed, bytes, session } => {
                if !place.attach() {
                    return Ok(Err(Ended::refused(Kind::Connections, "no more clients can attach")));
                }
                receiver.consume(consumed);
                stream.send_all(&bytes)?;
                return Ok(Ok(session));
            }
            Step::Close { bytes, reason } => {
                stream.send_all(&bytes)?;
                return Ok(Err(reason.into()));
            }
        }
    }
}

/// What an option's reply refuses, where somebody may want to know of it: an option that a server does
/// not know is part of every negotiation (proto.md, Option reply types).
fn refused_option(reply: &[u8]) -> Option<(Kind, &'static str)> {
    let kind = reply.get(12..16).and_then(|kind| kind.try_into().ok()).map(u32::from_be_bytes)?;
    match kind {
        NBD_REP_ERR_UNKNOWN => Some((Kind::Export, "an export that does not exist, or not for this client")),
        NBD_REP_ERR_TLS_REQD => Some((Kind::TlsRequired, "an option before TLS, which is required")),
        NBD_REP_ERR_POLICY => Some((Kind::Handshake, "an option that this server does not allow")),
        _ => None,
    }
}

/// Goes over to TLS, and from there on with the exports that the client's certificate opens.
fn secure(
    shared: &Shared,
    offer: &Offer,
    stream: &Stream,
    state: AwaitingTls,
    left: Duration,
) -> Result<Handshake, Ended> {
    let Some(tls) = &shared.tls else { return Err(Ended::refused(Kind::Tls, "this server has no TLS")) };
    match stream.secure(tls, left) {
        Ok(()) => Ok(state.secured(visible(shared, offer, stream))),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            Err(Ended::Refused(Kind::Tls, format!("{error}{}", cause.unwrap_or_default()).into()))
        }
    }
}

/// The exports that this client may know of: those that are offered where it connected, and are for it.
fn visible(shared: &Shared, offer: &Offer, stream: &Stream) -> Arc<Exports> {
    let client = stream.identity();
    let admitted = |index: usize| shared.services.get(index).is_some_and(|s| s.access.admits(&client));
    Arc::new(shared.exports.visible(|index, _| offer.includes(index) && admitted(index)))
}
