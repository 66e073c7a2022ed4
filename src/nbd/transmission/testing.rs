//! For these files' tests: requests as a client sends them, and what is said to them.

use crate::nbd::command::{Command, Echo, Form, Request};
use crate::nbd::errno::NbdErrno;
use crate::nbd::outcome::Negotiated;
use crate::nbd::testing::{request, session};
use crate::nbd::wire::*;

use super::{Admission, Refusal};

/// Bytes of the small exports.
pub(super) const SIZE: u64 = 1 << 20;
/// What a request says, if it is at 0, and its reply repeats.
pub(super) const ECHO: Echo = Echo { cookie: 0x0123_4567_89ab_cdef, offset: 0 };
/// Forms whose requests are compact.
pub(super) const COMPACT: [Form; 2] = [Form::Simple, Form::Structured];
/// All forms.
pub(super) const FORMS: [Form; 3] = [Form::Simple, Form::Structured, Form::Extended];
/// With an extended WRITE.
pub(super) const PAYLOAD_LEN: u16 = NBD_CMD_FLAG_PAYLOAD_LEN;
/// What a session of the export `name` says to a request: the command, or the error and how much is
/// drained.
pub(super) fn judge(
    session: &Negotiated,
    kind: u16,
    flags: u16,
    offset: u64,
    len: u64,
) -> Result<Command, (NbdErrno, u64)> {
    let header = request(session.form, kind, flags, ECHO.cookie, offset, len);
    outcome(session.transmission().admit(&header).unwrap(), kind, offset)
}

/// What an admission says to a request of this kind at `offset`.
pub(super) fn outcome(admission: Admission, kind: u16, offset: u64) -> Result<Command, (NbdErrno, u64)> {
    let expected = Echo { offset, ..ECHO };
    match admission {
        Admission::Accept(Request { echo, command }) if echo == expected => Ok(command),
        Admission::Refuse(Refusal { echo, command, error, drain }) if echo == expected && command == kind => {
            Err((error, drain))
        }
        other => panic!("{other:?}"),
    }
}

/// As a client of this form should ask: an extended WRITE has `PAYLOAD_LEN`.
pub(super) fn ask(
    form: Form,
    kind: u16,
    flags: u16,
    offset: u64,
    len: u64,
) -> Result<Command, (NbdErrno, u64)> {
    let payload = if form == Form::Extended && kind == NBD_CMD_WRITE { PAYLOAD_LEN } else { 0 };
    judge(&session("disk", form), kind, flags | payload, offset, len)
}

/// How much of a refused request is drained.
pub(super) fn drained(kind: u16, len: u64) -> u64 {
    if kind == NBD_CMD_WRITE { len } else { 0 }
}
