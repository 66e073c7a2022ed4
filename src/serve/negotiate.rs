//! The handshake of a connection: what the protocol core decides, carried out on a stream, with TLS in
//! the middle of it where the server demands that.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::nbd::{AwaitingTls, Exports, Handshake, Negotiated, Step, TlsMode};
use crate::net::Stream;

use super::receiver::Receiver;
use super::registry::Place;
use super::server::{Offer, Shared};

/// Why a connection ended, for the log.
pub(super) type Ended = Cow<'static, str>;

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
            return Ok(Err("the handshake took too long".into()));
        }
        stream.set_receive_deadline(Some(left))?;
        match receiver.fill(at_least) {
            Ok(true) => {}
            Ok(false) => return Ok(Err("the client left during the handshake".into())),
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
                    return Ok(Err("no more clients can attach".into()));
                }
                receiver.consume(consumed);
                stream.send_all(&bytes)?;
                return Ok(Ok(session));
            }
            Step::Close { bytes, reason } => {
                stream.send_all(&bytes)?;
                return Ok(Err(reason.to_string().into()));
            }
        }
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
    let Some(tls) = &shared.tls else { return Err("this server has no TLS".into()) };
    match stream.secure(tls, left) {
        Ok(()) => Ok(state.secured(visible(shared, offer, stream))),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            Err(format!("{error}{}", cause.unwrap_or_default()).into())
        }
    }
}

/// The exports that this client may know of: those that are offered where it connected, and are for it.
fn visible(shared: &Shared, offer: &Offer, stream: &Stream) -> Arc<Exports> {
    let client = stream.identity();
    let admitted = |index: usize| shared.services.get(index).is_some_and(|s| s.access.admits(&client));
    Arc::new(shared.exports.visible(|index, _| offer.includes(index) && admitted(index)))
}
