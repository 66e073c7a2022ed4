//! [`Filtered`]: a `BLOCK_STATUS` that carries a payload.

use crate::nbd::command::{Echo, Form, Request};
use crate::nbd::errno::NbdErrno;
use crate::nbd::wire::{
    NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_FLAG_REQ_ONE, Reader, STATUS_PAYLOAD_LEN,
};

use super::header::RequestHeader;
use super::{Refusal, Transmission};

/// A `BLOCK_STATUS` that says in a payload of [`STATUS_PAYLOAD_LEN`] bytes how far to look and which
/// metadata context to tell of (proto.md, Request types, `NBD_CMD_BLOCK_STATUS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filtered {
    header: RequestHeader,
    rules: Transmission,
}

impl Filtered {
    /// A request that [`Filtered::applies`] to.
    pub(super) fn new(header: RequestHeader, rules: Transmission) -> Self {
        Self { header, rules }
    }

    /// Whether the request is a `BLOCK_STATUS` with a payload that may be right. There is one context, and
    /// none may be named twice, so that there is one length.
    pub(super) fn applies(rules: &Transmission, header: &RequestHeader) -> bool {
        rules.form == Form::Extended
            && rules.context.is_some()
            && header.kind == NBD_CMD_BLOCK_STATUS
            && header.has(NBD_CMD_FLAG_PAYLOAD_LEN)
            && header.only(NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_PAYLOAD_LEN).is_ok()
            && header.len == STATUS_PAYLOAD_LEN as u64
    }

    /// Judges the request now that its payload is there: effect length and the context's id. No payload
    /// follows any more.
    pub fn admit(self, payload: &[u8; STATUS_PAYLOAD_LEN]) -> Result<Request, Refusal> {
        let mut reader = Reader::new(payload);
        let (len, id) = (reader.u64().unwrap_or(0), reader.u32());
        if id == self.rules.context {
            let flags = self.header.flags & !NBD_CMD_FLAG_PAYLOAD_LEN;
            return self.rules.judge(&RequestHeader { flags, len, ..self.header }, 0);
        }
        let RequestHeader { kind: command, cookie, offset, .. } = self.header;
        let echo = Echo { cookie, offset: offset.0 };
        Err(Refusal { echo, command, error: NbdErrno::Einval, drain: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::testing::{request, session};
    use crate::nbd::transmission::testing::FORMS;
    use crate::nbd::transmission::testing::{ECHO, PAYLOAD_LEN, SIZE, judge, outcome};
    use crate::nbd::wire::*;
    use crate::nbd::{Admission, Command, Negotiated};
    use crate::units::{ByteCount, ByteOffset};

    #[test]
    fn block_status_needs_a_context() {
        for form in FORMS {
            let without = Negotiated { meta_allocation: None, ..session("disk", form) };
            assert_eq!(judge(&without, NBD_CMD_BLOCK_STATUS, 0, 0, 512), Err((NbdErrno::Einval, 0)));
        }
        let without = Negotiated { meta_allocation: None, ..session("disk", Form::Extended) };
        assert_eq!(judge(&without, NBD_CMD_BLOCK_STATUS, PAYLOAD_LEN, 0, 12), Err((NbdErrno::Einval, 12)));
    }

    /// What a `BLOCK_STATUS` with this payload comes to.
    fn filter(flags: u16, offset: u64, len: u64, id: u32) -> Result<Command, (NbdErrno, u64)> {
        let disk = session("disk", Form::Extended);
        let kind = NBD_CMD_BLOCK_STATUS;
        let header = request(Form::Extended, kind, flags | PAYLOAD_LEN, ECHO.cookie, offset, 12);
        let Some(Admission::Filter(filtered)) = disk.transmission().admit(&header) else {
            panic!("no filter")
        };
        let payload = [&len.to_be_bytes()[..], &id.to_be_bytes()].concat();
        let admission = match filtered.admit(&payload.try_into().unwrap()) {
            Ok(request) => Admission::Accept(request),
            Err(refusal) => Admission::Refuse(refusal),
        };
        outcome(admission, kind, offset)
    }

    /// proto.md, Request types, `NBD_CMD_BLOCK_STATUS`: the effect length is the payload's, and unknown
    /// contexts are EINVAL once the payload is gone.
    #[test]
    fn block_status_may_name_its_context() {
        let status = |len, req_one| Command::BlockStatus { offset: ByteOffset(512), len, req_one };
        assert_eq!(filter(0, 512, 4096, 1), Ok(status(ByteCount(4096), false)));
        assert_eq!(
            filter(NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_FUA, 512, 1, 1),
            Ok(status(ByteCount(1), true))
        );
        for id in [0, 2, u32::MAX] {
            assert_eq!(filter(0, 0, 4096, id), Err((NbdErrno::Einval, 0)));
        }
        for (offset, len) in [(0, SIZE + 1), (SIZE, 1), (0, 0), (512, u64::MAX), (u64::MAX, 1)] {
            assert_eq!(filter(0, offset, len, 1), Err((NbdErrno::Einval, 0)));
        }
    }

    /// None, two (one of them twice), or part of one.
    #[test]
    fn a_payload_that_names_no_context_or_too_many_is_drained() {
        let disk = session("disk", Form::Extended);
        for len in [0, 8, 11, 13, 16, 4096] {
            let answer = judge(&disk, NBD_CMD_BLOCK_STATUS, PAYLOAD_LEN, 0, len);
            assert_eq!(answer, Err((NbdErrno::Einval, len)));
        }
        let with_another_flag = PAYLOAD_LEN | NBD_CMD_FLAG_DF;
        assert_eq!(judge(&disk, NBD_CMD_BLOCK_STATUS, with_another_flag, 0, 12), Err((NbdErrno::Einval, 12)));
    }
}
