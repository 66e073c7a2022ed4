//! [`Transmission`]: judges the header of every request before anything else happens to it.
//!
//! Guarantees: what is admitted lies within the export, may be written if it writes, has only flags that
//! fit, and carries at most 32 MiB in either direction. Of what is refused the caller learns how many
//! bytes of payload follow, all of which must be thrown away: a payload that looks like a request must
//! never be taken for one. Nothing here allocates.

use crate::block::{Durability, Zeroing};
use crate::units::{ByteCount, ByteOffset};

use super::command::{Command, Request};
use super::errno::{NbdErrno, out_of_range};
use super::outcome::{CloseReason, Negotiated};
use super::wire::{
    MAX_PAYLOAD, NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM,
    NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_REQUEST_MAGIC, REQUEST_HEADER_LEN,
};

/// What a session's requests are measured against. With extended headers it will also know how long a
/// header is, and where a payload's length stands.
#[derive(Clone, Copy, Debug)]
pub struct Transmission {
    size: ByteCount,
    read_only: bool,
    structured: bool,
    block_status: bool,
}

/// What to do about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Carry it out. After a [`Command::Write`] its payload follows.
    Accept(Request),
    /// Drop the payload and reply with an error.
    Refuse(Refusal),
    /// The stream is no longer one of requests: close the connection.
    Close(CloseReason),
}

/// A request that is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the client wants to see again in the reply.
    pub cookie: u64,
    /// The request's type as it came, for the log.
    pub command: u16,
    /// The error of the reply.
    pub error: NbdErrno,
    /// Bytes of payload that follow the header and must be thrown away before the next header.
    pub drain: u64,
}

/// A header's fields.
struct Raw {
    magic: u32,
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: ByteOffset,
    len: u32,
}

impl Transmission {
    /// The rules of one session.
    pub fn new(session: &Negotiated) -> Self {
        Self {
            size: session.export.size(),
            read_only: session.export.read_only(),
            structured: session.structured,
            block_status: session.meta_allocation.is_some(),
        }
    }

    /// Judges a request by its header (proto.md, Request message).
    pub fn admit(&self, header: &[u8; REQUEST_HEADER_LEN]) -> Admission {
        let raw = Raw::parse(header);
        if raw.magic != NBD_REQUEST_MAGIC {
            return Admission::Close(CloseReason::BadRequestMagic(raw.magic));
        }
        match self.check(&raw) {
            Ok(command) => Admission::Accept(Request { cookie: raw.cookie, command }),
            Err(error) => {
                let drain = raw.payload_len();
                Admission::Refuse(Refusal { cookie: raw.cookie, command: raw.kind, error, drain })
            }
        }
    }

    fn check(&self, raw: &Raw) -> Result<Command, NbdErrno> {
        let command = self.command(raw)?;
        self.check_writable(&command)?;
        self.check_range(raw, &command)?;
        self.check_payload(raw, &command)?;
        Ok(command)
    }

    /// The command with its flags, if they fit.
    fn command(&self, raw: &Raw) -> Result<Command, NbdErrno> {
        let (offset, len) = (raw.offset, ByteCount(raw.len.into()));
        let durability = if raw.has(NBD_CMD_FLAG_FUA) { Durability::Fua } else { Durability::Flush };
        match raw.kind {
            // proto.md, Command flags: DF only once structured replies were negotiated.
            NBD_CMD_READ => {
                raw.only(if self.structured { NBD_CMD_FLAG_DF } else { 0 })?;
                Ok(Command::Read { offset, len, df: raw.has(NBD_CMD_FLAG_DF) })
            }
            NBD_CMD_WRITE => raw.only(0).map(|()| Command::Write { offset, len, durability }),
            // proto.md, Request types, NBD_CMD_DISC: there is no reply, and so there is no error either.
            NBD_CMD_DISC => Ok(Command::Disc),
            // proto.md, Request types, NBD_CMD_FLUSH: offset and length are reserved. They are not looked
            // at: to flush is always right, and to refuse could cost somebody's data.
            NBD_CMD_FLUSH => raw.only(0).map(|()| Command::Flush),
            NBD_CMD_TRIM => raw.only(0).map(|()| Command::Trim { offset, len, durability }),
            NBD_CMD_CACHE => raw.only(0).map(|()| Command::Cache { offset, len }),
            NBD_CMD_WRITE_ZEROES => {
                raw.only(NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO)?;
                let how = Zeroing {
                    may_unmap: !raw.has(NBD_CMD_FLAG_NO_HOLE),
                    only_if_fast: raw.has(NBD_CMD_FLAG_FAST_ZERO),
                };
                Ok(Command::WriteZeroes { offset, len, how, durability })
            }
            // proto.md, Metadata querying: EINVAL without a context. A length of 0 has no extent that could
            // be told of.
            NBD_CMD_BLOCK_STATUS if self.block_status && raw.len > 0 => {
                raw.only(NBD_CMD_FLAG_REQ_ONE)?;
                Ok(Command::BlockStatus { offset, len, req_one: raw.has(NBD_CMD_FLAG_REQ_ONE) })
            }
            // proto.md, Error values: an unknown command is EINVAL.
            _ => Err(NbdErrno::Einval),
        }
    }

    /// proto.md, Error values; proto.md, Request types, `NBD_CMD_WRITE_ZEROES`: EPERM for what writes.
    fn check_writable(&self, command: &Command) -> Result<(), NbdErrno> {
        match command {
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. } if self.read_only => {
                Err(NbdErrno::Eperm)
            }
            _ => Ok(()),
        }
    }

    /// proto.md, Size constraints: offset and length end within the export.
    fn check_range(&self, raw: &Raw, command: &Command) -> Result<(), NbdErrno> {
        if matches!(command, Command::Disc | Command::Flush) {
            return Ok(());
        }
        match raw.offset.checked_add(ByteCount(raw.len.into())) {
            Some(end) if end.0 <= self.size.0 => Ok(()),
            _ => Err(out_of_range(command)),
        }
    }

    /// proto.md, Size constraints: the maximum payload. proto.md, Error values: EOVERFLOW is for a READ
    /// under structured replies and for what has no payload, none of which is ever too long here.
    fn check_payload(&self, raw: &Raw, command: &Command) -> Result<(), NbdErrno> {
        match command {
            Command::Read { .. } if raw.len > MAX_PAYLOAD && self.structured => Err(NbdErrno::Eoverflow),
            Command::Read { .. } | Command::Write { .. } if raw.len > MAX_PAYLOAD => Err(NbdErrno::Einval),
            _ => Ok(()),
        }
    }
}

impl Raw {
    fn parse(header: &[u8; REQUEST_HEADER_LEN]) -> Self {
        Self {
            magic: u32::from_be_bytes(field::<0, 4>(header)),
            flags: u16::from_be_bytes(field::<4, 2>(header)),
            kind: u16::from_be_bytes(field::<6, 2>(header)),
            cookie: u64::from_be_bytes(field::<8, 8>(header)),
            offset: ByteOffset(u64::from_be_bytes(field::<16, 8>(header))),
            len: u32::from_be_bytes(field::<24, 4>(header)),
        }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// proto.md, Error values: an unknown flag is EINVAL, and so is one that does not apply. proto.md,
    /// Command flags: FUA applies to every command. `PAYLOAD_LEN` belongs to extended headers, so that
    /// here it is unknown.
    fn only(&self, flags: u16) -> Result<(), NbdErrno> {
        if self.flags & !(flags | NBD_CMD_FLAG_FUA) == 0 { Ok(()) } else { Err(NbdErrno::Einval) }
    }

    /// proto.md, Request message: `length` bytes follow a WRITE, whatever else is wrong with it, and
    /// nothing follows any other request.
    fn payload_len(&self) -> u64 {
        if self.kind == NBD_CMD_WRITE { self.len.into() } else { 0 }
    }
}

/// The `N` bytes at `AT`.
fn field<const AT: usize, const N: usize>(header: &[u8; REQUEST_HEADER_LEN]) -> [u8; N] {
    const { assert!(AT + N <= REQUEST_HEADER_LEN) };
    std::array::from_fn(|i| header[AT + i])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::testing::{request, session};
    use crate::nbd::wire::*;

    const SIZE: u64 = 1 << 20;
    const COOKIE: u64 = 0x0123_4567_89ab_cdef;

    /// What a session with everything negotiated says to a request.
    fn ask(kind: u16, flags: u16, offset: u64, len: u32) -> Result<Command, (NbdErrno, u64)> {
        judge(&session("disk", true), kind, flags, offset, len)
    }

    fn judge(
        session: &Negotiated,
        kind: u16,
        flags: u16,
        offset: u64,
        len: u32,
    ) -> Result<Command, (NbdErrno, u64)> {
        match session.transmission().admit(&request(kind, flags, COOKIE, offset, len)) {
            Admission::Accept(Request { cookie: COOKIE, command }) => Ok(command),
            Admission::Refuse(Refusal { cookie: COOKIE, command, error, drain }) if command == kind => {
                Err((error, drain))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_become_commands() {
        let (offset, len) = (ByteOffset(512), ByteCount(4096));
        let how = Zeroing { may_unmap: true, only_if_fast: false };
        let durability = Durability::Flush;
        for (kind, command) in [
            (NBD_CMD_READ, Command::Read { offset, len, df: false }),
            (NBD_CMD_WRITE, Command::Write { offset, len, durability }),
            (NBD_CMD_TRIM, Command::Trim { offset, len, durability }),
            (NBD_CMD_CACHE, Command::Cache { offset, len }),
            (NBD_CMD_WRITE_ZEROES, Command::WriteZeroes { offset, len, how, durability }),
            (NBD_CMD_BLOCK_STATUS, Command::BlockStatus { offset, len, req_one: false }),
        ] {
            assert_eq!(ask(kind, 0, 512, 4096), Ok(command));
        }
        assert_eq!(ask(NBD_CMD_DISC, 0, 0, 0), Ok(Command::Disc));
        assert_eq!(ask(NBD_CMD_FLUSH, 0, 0, 0), Ok(Command::Flush));
    }

    #[test]
    fn flags_become_arguments() {
        let (offset, len) = (ByteOffset(0), ByteCount(1));
        let durability = Durability::Fua;
        assert_eq!(ask(NBD_CMD_WRITE, 1, 0, 1), Ok(Command::Write { offset, len, durability }));
        assert_eq!(ask(NBD_CMD_TRIM, 1, 0, 1), Ok(Command::Trim { offset, len, durability }));
        assert_eq!(ask(NBD_CMD_READ, 4, 0, 1), Ok(Command::Read { offset, len, df: true }));
        assert_eq!(
            ask(NBD_CMD_BLOCK_STATUS, 8, 0, 1),
            Ok(Command::BlockStatus { offset, len, req_one: true })
        );
        for (flags, may_unmap, only_if_fast) in
            [(1, true, false), (3, false, false), (17, true, true), (19, false, true)]
        {
            let how = Zeroing { may_unmap, only_if_fast };
            let expected = Command::WriteZeroes { offset, len, how, durability };
            assert_eq!(ask(NBD_CMD_WRITE_ZEROES, flags, 0, 1), Ok(expected));
        }
    }

    #[test]
    fn another_magic_ends_the_session() {
        let transmission = session("disk", true).transmission();
        for magic in [0, 0x1256_0953, NBD_SIMPLE_REPLY_MAGIC, 0x21e4_1c71, NBD_REQUEST_MAGIC + 1] {
            let mut header = request(NBD_CMD_READ, 0, 0, 0, 512);
            header[..4].copy_from_slice(&magic.to_be_bytes());
            assert_eq!(transmission.admit(&header), Admission::Close(CloseReason::BadRequestMagic(magic)));
        }
    }

    /// Every flag on every command: what the table does not name is EINVAL, and the payload of a WRITE is
    /// drained all the same.
    #[test]
    fn only_flags_that_fit_are_taken() {
        for kind in (0..8).filter(|kind| *kind != NBD_CMD_DISC) {
            let fitting = NBD_CMD_FLAG_FUA
                | match kind {
                    NBD_CMD_READ => NBD_CMD_FLAG_DF,
                    NBD_CMD_WRITE_ZEROES => NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                    NBD_CMD_BLOCK_STATUS => NBD_CMD_FLAG_REQ_ONE,
                    _ => 0,
                };
            for bit in 0..16 {
                let answer = ask(kind, 1 << bit, 0, 512);
                if fitting & 1 << bit == 0 {
                    let drain = if kind == NBD_CMD_WRITE { 512 } else { 0 };
                    assert_eq!(answer, Err((NbdErrno::Einval, drain)), "command {kind}, bit {bit}");
                } else {
                    assert!(answer.is_ok(), "command {kind}, bit {bit}");
                }
            }
        }
        assert_eq!(ask(NBD_CMD_DISC, 0xffff, 1, 1), Ok(Command::Disc));
        let simple = session("disk", false);
        assert_eq!(judge(&simple, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512), Err((NbdErrno::Einval, 0)));
    }

    #[test]
    fn beyond_the_end_is_einval_or_enospc() {
        for (kind, error) in [
            (NBD_CMD_READ, NbdErrno::Einval),
            (NBD_CMD_WRITE, NbdErrno::Enospc),
            (NBD_CMD_TRIM, NbdErrno::Einval),
            (NBD_CMD_CACHE, NbdErrno::Einval),
            (NBD_CMD_WRITE_ZEROES, NbdErrno::Enospc),
            (NBD_CMD_BLOCK_STATUS, NbdErrno::Einval),
        ] {
            assert!(ask(kind, 0, SIZE - 1, 1).is_ok());
            for (offset, len) in
                [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX - 511, 512), (0, u32::MAX)]
            {
                let drain = if kind == NBD_CMD_WRITE { u64::from(len) } else { 0 };
                assert_eq!(ask(kind, 0, offset, len), Err((error, drain)), "command {kind} at {offset}");
            }
        }
    }

    /// CVE-2005-3534, CVE-2011-0530: a length of 2^32 - 1, on an export that is large enough for it.
    #[test]
    fn overlong_payloads_are_refused_and_the_rest_is_not() {
        let large = session("", true);
        for len in [MAX_PAYLOAD + 1, u32::MAX] {
            let ask = |kind| judge(&large, kind, 0, 0, len);
            assert_eq!(ask(NBD_CMD_READ), Err((NbdErrno::Eoverflow, 0)));
            assert_eq!(ask(NBD_CMD_WRITE), Err((NbdErrno::Einval, len.into())));
            for kind in [NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES, NBD_CMD_BLOCK_STATUS] {
                assert!(ask(kind).is_ok());
            }
            let simple = session("", false);
            assert_eq!(judge(&simple, NBD_CMD_READ, 0, 0, len), Err((NbdErrno::Einval, 0)));
        }
        assert!(judge(&large, NBD_CMD_READ, 0, 0, MAX_PAYLOAD).is_ok());
        assert!(judge(&large, NBD_CMD_WRITE, 0, 0, MAX_PAYLOAD).is_ok());
    }

    #[test]
    fn a_read_only_export_takes_no_writes() {
        let tape = session("tape", true);
        for kind in [NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES] {
            let drain = if kind == NBD_CMD_WRITE { 512 } else { 0 };
            assert_eq!(judge(&tape, kind, 0, 0, 512), Err((NbdErrno::Eperm, drain)));
        }
        for kind in [NBD_CMD_READ, NBD_CMD_FLUSH, NBD_CMD_CACHE, NBD_CMD_BLOCK_STATUS] {
            assert!(judge(&tape, kind, 0, 0, 512).is_ok());
        }
    }

    #[test]
    fn zero_length_is_admitted_but_for_block_status() {
        for kind in [NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES] {
            assert!(ask(kind, 0, 0, 0).is_ok() && ask(kind, 0, SIZE, 0).is_ok(), "{kind}");
        }
        assert_eq!(ask(NBD_CMD_BLOCK_STATUS, 0, 0, 0), Err((NbdErrno::Einval, 0)));
    }

    #[test]
    fn block_status_needs_a_context() {
        let without = Negotiated { meta_allocation: None, ..session("disk", true) };
        assert_eq!(judge(&without, NBD_CMD_BLOCK_STATUS, 0, 0, 512), Err((NbdErrno::Einval, 0)));
    }

    #[test]
    fn a_flush_is_a_flush_whatever_else_it_says() {
        assert_eq!(ask(NBD_CMD_FLUSH, NBD_CMD_FLAG_FUA, u64::MAX, u32::MAX), Ok(Command::Flush));
    }

    #[test]
    fn unknown_commands_are_einval_and_have_no_payload() {
        for kind in [8, 9, 255, 256, u16::MAX] {
            assert_eq!(ask(kind, 0, 0, 4096), Err((NbdErrno::Einval, 0)));
        }
    }
}
