//! [`RequestHeader`]: a request's header, field by field, and what these fields alone say: which command it is,
//! whether its flags fit, and how much payload follows.

use crate::block::{Durability, Zeroing};
use crate::nbd::command::{Command, Form};
use crate::nbd::errno::NbdErrno;
use crate::nbd::wire::{
    NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH,
    NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, Reader,
};
use crate::units::{ByteCount, ByteOffset};

/// A header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestHeader {
    pub(super) magic: u32,
    pub(super) flags: u16,
    pub(super) kind: u16,
    pub(super) cookie: u64,
    pub(super) offset: ByteOffset,
    pub(super) len: u64,
}

impl RequestHeader {
    /// `None` if `input` is shorter than a header of this form.
    pub(super) fn parse(form: Form, input: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(input);
        Some(Self {
            magic: reader.u32()?,
            flags: reader.u16()?,
            kind: reader.u16()?,
            cookie: reader.u64()?,
            offset: ByteOffset(reader.u64()?),
            len: if form == Form::Extended { reader.u64()? } else { reader.u32()?.into() },
        })
    }

    /// Whether a flag is set.
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// proto.md, Error values: an unknown flag is EINVAL, and so is one that does not apply. proto.md,
    /// Command flags: FUA applies to every command.
    pub(super) fn only(&self, flags: u16) -> Result<(), NbdErrno> {
        if self.flags & !(flags | NBD_CMD_FLAG_FUA) == 0 { Ok(()) } else { Err(NbdErrno::Einval) }
    }

    /// proto.md, Request message: whatever else is wrong with a request, `length` bytes follow if it is a
    /// WRITE, or extended with `PAYLOAD_LEN`. Nothing follows any other. An extended WRITE without the flag
    /// has its data behind it as well, as QEMU sends it: that data is a guest's, and must not be taken for
    /// requests.
    pub(super) fn payload_len(&self, form: Form) -> u64 {
        let announced = form == Form::Extended && self.has(NBD_CMD_FLAG_PAYLOAD_LEN);
        if announced || self.kind == NBD_CMD_WRITE { self.len } else { 0 }
    }

    /// The command with its flags, if they fit; `has_context` says whether `BLOCK_STATUS` has something to tell
    /// of.
    pub(super) fn command(&self, form: Form, has_context: bool) -> Result<Command, NbdErrno> {
        let (offset, len) = (self.offset, ByteCount(self.len));
        let durability = if self.has(NBD_CMD_FLAG_FUA) { Durability::Fua } else { Durability::Flush };
        match self.kind {
            // proto.md, Command flags: DF only where replies come in chunks.
            NBD_CMD_READ => {
                self.only(if form.has_chunks() { NBD_CMD_FLAG_DF } else { 0 })?;
                Ok(Command::Read { offset, len, df: self.has(NBD_CMD_FLAG_DF) })
            }
            // proto.md, Command flags: PAYLOAD_LEN is unknown on a compact WRITE, and a must on an extended
            // one. There QEMU's client, up to version 10 at least, leaves it out.
            NBD_CMD_WRITE => {
                self.only(if form == Form::Extended { NBD_CMD_FLAG_PAYLOAD_LEN } else { 0 })?;
                Ok(Command::Write { offset, len, durability })
            }
            // proto.md, Request types, NBD_CMD_DISC: there is no reply, and so there is no error either.
            NBD_CMD_DISC => Ok(Command::Disc),
            // proto.md, Request types, NBD_CMD_FLUSH: offset and length are reserved. They are not looked
            // at: to flush is always right, and to refuse could cost somebody's data.
            NBD_CMD_FLUSH => self.only(0).map(|()| Command::Flush),
            NBD_CMD_TRIM => self.only(0).map(|()| Command::Trim { offset, len, durability }),
            NBD_CMD_CACHE => self.only(0).map(|()| Command::Cache { offset, len }),
            NBD_CMD_WRITE_ZEROES => {
                self.only(NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO)?;
                let how = Zeroing {
                    may_unmap: !self.has(NBD_CMD_FLAG_NO_HOLE),
                    only_if_fast: self.has(NBD_CMD_FLAG_FAST_ZERO),
                };
                Ok(Command::WriteZeroes { offset, len, how, durability })
            }
            // proto.md, Metadata querying: EINVAL without a context. A length of 0 has no extent that could
            // be told of.
            NBD_CMD_BLOCK_STATUS if has_context && self.len > 0 => {
                self.only(NBD_CMD_FLAG_REQ_ONE)?;
                Ok(Command::BlockStatus { offset, len, req_one: self.has(NBD_CMD_FLAG_REQ_ONE) })
            }
            // proto.md, Error values: an unknown command is EINVAL.
            _ => Err(NbdErrno::Einval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::testing::{request, session};
    use crate::nbd::transmission::testing::{FORMS, PAYLOAD_LEN, SIZE, ask, drained, judge};
    use crate::nbd::wire::MAX_PAYLOAD;
    use crate::nbd::{Admission, CloseReason};

    #[test]
    fn requests_become_commands() {
        let (offset, len) = (ByteOffset(512), ByteCount(4096));
        let how = Zeroing { may_unmap: true, only_if_fast: false };
        let durability = Durability::Flush;
        for form in FORMS {
            for (kind, command) in [
                (NBD_CMD_READ, Command::Read { offset, len, df: false }),
                (NBD_CMD_WRITE, Command::Write { offset, len, durability }),
                (NBD_CMD_TRIM, Command::Trim { offset, len, durability }),
                (NBD_CMD_CACHE, Command::Cache { offset, len }),
                (NBD_CMD_WRITE_ZEROES, Command::WriteZeroes { offset, len, how, durability }),
                (NBD_CMD_BLOCK_STATUS, Command::BlockStatus { offset, len, req_one: false }),
            ] {
                let needs_chunks = kind == NBD_CMD_BLOCK_STATUS && form == Form::Simple;
                assert!(needs_chunks || ask(form, kind, 0, 512, 4096) == Ok(command), "{form}, {kind}");
            }
            assert_eq!(ask(form, NBD_CMD_DISC, 0, 0, 0), Ok(Command::Disc));
            assert_eq!(ask(form, NBD_CMD_FLUSH, 0, 0, 0), Ok(Command::Flush));
        }
    }

    #[test]
    fn flags_become_arguments() {
        let (offset, len) = (ByteOffset(0), ByteCount(1));
        let durability = Durability::Fua;
        for form in [Form::Structured, Form::Extended] {
            let ask = |kind, flags| ask(form, kind, flags, 0, 1);
            assert_eq!(ask(NBD_CMD_WRITE, 1), Ok(Command::Write { offset, len, durability }));
            assert_eq!(ask(NBD_CMD_TRIM, 1), Ok(Command::Trim { offset, len, durability }));
            assert_eq!(ask(NBD_CMD_READ, 4), Ok(Command::Read { offset, len, df: true }));
            let one = Command::BlockStatus { offset, len, req_one: true };
            assert_eq!(ask(NBD_CMD_BLOCK_STATUS, 8), Ok(one));
            for (flags, may_unmap, only_if_fast) in
                [(1, true, false), (3, false, false), (17, true, true), (19, false, true)]
            {
                let how = Zeroing { may_unmap, only_if_fast };
                let expected = Command::WriteZeroes { offset, len, how, durability };
                assert_eq!(ask(NBD_CMD_WRITE_ZEROES, flags), Ok(expected));
            }
        }
    }

    /// Every flag on every command: what the table does not name is EINVAL, and a payload is drained all
    /// the same.
    #[test]
    fn only_flags_that_fit_are_taken() {
        for form in FORMS {
            for kind in (0..9).filter(|kind| *kind != NBD_CMD_DISC) {
                let fitting = NBD_CMD_FLAG_FUA
                    | match kind {
                        NBD_CMD_READ if form.has_chunks() => NBD_CMD_FLAG_DF,
                        NBD_CMD_WRITE if form == Form::Extended => PAYLOAD_LEN,
                        NBD_CMD_WRITE_ZEROES => NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                        NBD_CMD_BLOCK_STATUS => NBD_CMD_FLAG_REQ_ONE,
                        _ => 0,
                    };
                let unknown = kind == 8 || kind == NBD_CMD_BLOCK_STATUS && form == Form::Simple;
                for bit in 0..16 {
                    let answer = ask(form, kind, 1 << bit, 0, 512);
                    if !unknown && fitting & 1 << bit != 0 {
                        assert!(answer.is_ok(), "{form}, command {kind}, bit {bit}");
                    } else {
                        let payload = form == Form::Extended && 1 << bit == PAYLOAD_LEN;
                        let drain = if payload { 512 } else { drained(kind, 512) };
                        assert_eq!(
                            answer,
                            Err((NbdErrno::Einval, drain)),
                            "{form}, command {kind}, bit {bit}"
                        );
                    }
                }
            }
            assert_eq!(ask(form, NBD_CMD_DISC, 0xffff, 1, 1), Ok(Command::Disc));
        }
    }

    /// QEMU's client does not say that its extended WRITE has a payload, and sends it.
    #[test]
    fn an_extended_write_has_its_payload_with_or_without_the_flag() {
        let disk = session("disk", Form::Extended);
        for flags in [0, NBD_CMD_FLAG_FUA] {
            let with = judge(&disk, NBD_CMD_WRITE, flags | PAYLOAD_LEN, 0, 512);
            assert!(with.is_ok());
            assert_eq!(judge(&disk, NBD_CMD_WRITE, flags, 0, 512), with);
            assert_eq!(judge(&disk, NBD_CMD_WRITE, flags, SIZE, 512), Err((NbdErrno::Enospc, 512)));
        }
        let header = request(Form::Extended, NBD_CMD_WRITE, 0, 0, 0, 1 << 32);
        let close = Admission::Close(CloseReason::PayloadTooLong(1 << 32));
        assert_eq!(disk.transmission().admit(&header), Some(close));
    }

    /// proto.md, Request message: a payload that nobody may have ends the session, one that this command
    /// may not have is drained.
    #[test]
    fn unexpected_payloads_are_drained_up_to_the_maximum() {
        let disk = session("disk", Form::Extended);
        let most = u64::from(MAX_PAYLOAD);
        for kind in (0..10).filter(|kind| *kind != NBD_CMD_DISC) {
            for len in [0, 1, 512, most] {
                let answer = judge(&disk, kind, PAYLOAD_LEN, SIZE, len);
                match kind {
                    NBD_CMD_WRITE if len == 0 => assert!(answer.is_ok()),
                    NBD_CMD_WRITE => assert_eq!(answer, Err((NbdErrno::Enospc, len))),
                    _ => assert_eq!(answer, Err((NbdErrno::Einval, len)), "command {kind}"),
                }
            }
            for len in [most + 1, 1 << 32, u64::MAX] {
                let header = request(Form::Extended, kind, PAYLOAD_LEN, 0, 0, len);
                let close = Admission::Close(CloseReason::PayloadTooLong(len));
                assert_eq!(disk.transmission().admit(&header), Some(close), "command {kind}");
            }
        }
    }

    #[test]
    fn a_flush_is_a_flush_whatever_else_it_says() {
        for form in FORMS {
            let answer = ask(form, NBD_CMD_FLUSH, NBD_CMD_FLAG_FUA, u64::MAX, u64::MAX);
            assert_eq!(answer, Ok(Command::Flush));
        }
    }

    #[test]
    fn unknown_commands_are_einval_and_have_no_payload() {
        for form in FORMS {
            for kind in [8, 9, 255, 256, u16::MAX] {
                assert_eq!(ask(form, kind, 0, 0, 4096), Err((NbdErrno::Einval, 0)));
            }
        }
    }
}
