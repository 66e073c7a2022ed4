//! [`Transmission`]: judges the header of every request before anything else happens to it.
//!
//! Guarantees: what is admitted lies within the export, may be written if it writes, has only flags that
//! fit, and carries at most 32 MiB in either direction. Of what is refused the caller learns how many
//! bytes of payload follow, all of which must be thrown away: a payload that looks like a request must
//! never be taken for one. Nothing here allocates.

use crate::block::{Durability, Zeroing};
use crate::units::{ByteCount, ByteOffset};

use super::command::{Command, Echo, Form, Request};
use super::errno::{NbdErrno, out_of_range};
use super::outcome::{CloseReason, Negotiated};
use super::wire::{
    EXTENDED_REQUEST_HEADER_LEN, MAX_PAYLOAD, NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC,
    NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE,
    NBD_CMD_FLAG_PAYLOAD_LEN, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE,
    NBD_CMD_WRITE_ZEROES, NBD_EXTENDED_REQUEST_MAGIC, NBD_REQUEST_MAGIC, REQUEST_HEADER_LEN, Reader,
    STATUS_PAYLOAD_LEN,
};

/// What a session's requests are measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmission {
    size: ByteCount,
    read_only: bool,
    form: Form,
    /// The id of the metadata context that `BLOCK_STATUS` tells of.
    context: Option<u32>,
}

/// What to do about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Carry it out. After a [`Command::Write`] its payload follows.
    Accept(Request),
    /// Receive its payload and ask [`Filtered::admit`].
    Filter(Filtered),
    /// Drop the payload and reply with an error.
    Refuse(Refusal),
    /// The stream is no longer one of requests: close the connection.
    Close(CloseReason),
}

/// A `BLOCK_STATUS` that says in a payload of [`STATUS_PAYLOAD_LEN`] bytes how far to look and which
/// metadata context to tell of (proto.md, Request types, `NBD_CMD_BLOCK_STATUS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filtered {
    raw: Raw,
    rules: Transmission,
}

/// A request that is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the reply repeats.
    pub echo: Echo,
    /// The request's type as it came, for the log.
    pub command: u16,
    /// The error of the reply.
    pub error: NbdErrno,
    /// Bytes of payload that follow the header and must be thrown away before the next header.
    pub drain: u64,
}

/// A header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Raw {
    magic: u32,
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: ByteOffset,
    len: u64,
}

impl Transmission {
    /// The rules of one session.
    pub fn new(session: &Negotiated) -> Self {
        Self {
            size: session.export.size(),
            read_only: session.export.read_only(),
            form: session.form,
            context: session.meta_allocation,
        }
    }

    /// Bytes of every request's header.
    pub fn header_len(&self) -> usize {
        if self.form == Form::Extended { EXTENDED_REQUEST_HEADER_LEN } else { REQUEST_HEADER_LEN }
    }

    /// Judges a request by the header that `input` begins with (proto.md, Request message). `None` if
    /// that is shorter than [`Self::header_len`].
    pub fn admit(&self, input: &[u8]) -> Option<Admission> {
        let raw = Raw::parse(self.form, input)?;
        let extended = self.form == Form::Extended;
        let magic = if extended { NBD_EXTENDED_REQUEST_MAGIC } else { NBD_REQUEST_MAGIC };
        Some(if raw.magic != magic {
            Admission::Close(CloseReason::BadRequestMagic(raw.magic))
        } else if extended && raw.payload_len(self.form) > MAX_PAYLOAD.into() {
            // proto.md, Request message, the extended form: nobody waits for the end of this one. Without
            // extended headers a payload ends within 4 GiB.
            Admission::Close(CloseReason::PayloadTooLong(raw.len))
        } else if self.is_filtered(&raw) {
            Admission::Filter(Filtered { raw, rules: *self })
        } else {
            match self.judge(&raw, raw.payload_len(self.form)) {
                Ok(request) => Admission::Accept(request),
                Err(refusal) => Admission::Refuse(refusal),
            }
        })
    }

    /// Whether the request is a `BLOCK_STATUS` with a payload that may be right. There is one context, and
    /// none may be named twice, so that there is one length.
    fn is_filtered(&self, raw: &Raw) -> bool {
        self.form == Form::Extended
            && self.context.is_some()
            && raw.kind == NBD_CMD_BLOCK_STATUS
            && raw.has(NBD_CMD_FLAG_PAYLOAD_LEN)
            && raw.only(NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_PAYLOAD_LEN).is_ok()
            && raw.len == STATUS_PAYLOAD_LEN as u64
    }

    /// Judges a request after which `drain` bytes of payload follow.
    fn judge(&self, raw: &Raw, drain: u64) -> Result<Request, Refusal> {
        let echo = Echo { cookie: raw.cookie, offset: raw.offset.0 };
        match self.check(raw) {
            Ok(command) => Ok(Request { echo, command }),
            Err(error) => Err(Refusal { echo, command: raw.kind, error, drain }),
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
        let (offset, len) = (raw.offset, ByteCount(raw.len));
        let durability = if raw.has(NBD_CMD_FLAG_FUA) { Durability::Fua } else { Durability::Flush };
        match raw.kind {
            // proto.md, Command flags: DF only where replies come in chunks.
            NBD_CMD_READ => {
                raw.only(if self.form.has_chunks() { NBD_CMD_FLAG_DF } else { 0 })?;
                Ok(Command::Read { offset, len, df: raw.has(NBD_CMD_FLAG_DF) })
            }
            // proto.md, Command flags: PAYLOAD_LEN is unknown on a compact WRITE, and a must on an extended
            // one. There QEMU's client, up to version 10 at least, leaves it out.
            NBD_CMD_WRITE => {
                raw.only(if self.form == Form::Extended { NBD_CMD_FLAG_PAYLOAD_LEN } else { 0 })?;
                Ok(Command::Write { offset, len, durability })
            }
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
            NBD_CMD_BLOCK_STATUS if self.context.is_some() && raw.len > 0 => {
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
        match raw.offset.checked_add(ByteCount(raw.len)) {
            Some(end) if end.0 <= self.size.0 => Ok(()),
            _ => Err(out_of_range(command)),
        }
    }

    /// proto.md, Size constraints: the maximum payload. proto.md, Error values: EOVERFLOW is for a READ
    /// that is answered in chunks and for what has no payload, none of which is ever too long here.
    fn check_payload(&self, raw: &Raw, command: &Command) -> Result<(), NbdErrno> {
        let too_long = raw.len > MAX_PAYLOAD.into();
        match command {
            Command::Read { .. } if too_long && self.form.has_chunks() => Err(NbdErrno::Eoverflow),
            Command::Read { .. } | Command::Write { .. } if too_long => Err(NbdErrno::Einval),
            _ => Ok(()),
        }
    }
}

impl Filtered {
    /// Judges the request now that its payload is there: effect length and the context's id. No payload
    /// follows any more.
    pub fn admit(self, payload: &[u8; STATUS_PAYLOAD_LEN]) -> Result<Request, Refusal> {
        let mut reader = Reader::new(payload);
        let (len, id) = (reader.u64().unwrap_or(0), reader.u32());
        if id == self.rules.context {
            let flags = self.raw.flags & !NBD_CMD_FLAG_PAYLOAD_LEN;
            return self.rules.judge(&Raw { flags, len, ..self.raw }, 0);
        }
        let Raw { kind: command, cookie, offset, .. } = self.raw;
        let echo = Echo { cookie, offset: offset.0 };
        Err(Refusal { echo, command, error: NbdErrno::Einval, drain: 0 })
    }
}

impl Raw {
    fn parse(form: Form, input: &[u8]) -> Option<Self> {
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

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// proto.md, Error values: an unknown flag is EINVAL, and so is one that does not apply. proto.md,
    /// Command flags: FUA applies to every command.
    fn only(&self, flags: u16) -> Result<(), NbdErrno> {
        if self.flags & !(flags | NBD_CMD_FLAG_FUA) == 0 { Ok(()) } else { Err(NbdErrno::Einval) }
    }

    /// proto.md, Request message: whatever else is wrong with a request, `length` bytes follow if it is a
    /// WRITE, or extended with `PAYLOAD_LEN`. Nothing follows any other. An extended WRITE without the flag
    /// has its data behind it as well, as QEMU sends it: that data is a guest's, and must not be taken for
    /// requests.
    fn payload_len(&self, form: Form) -> u64 {
        let announced = form == Form::Extended && self.has(NBD_CMD_FLAG_PAYLOAD_LEN);
        if announced || self.kind == NBD_CMD_WRITE { self.len } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::testing::{request, session};
    use crate::nbd::wire::*;

    const SIZE: u64 = 1 << 20;
    const ECHO: Echo = Echo { cookie: 0x0123_4567_89ab_cdef, offset: 0 };
    const COMPACT: [Form; 2] = [Form::Simple, Form::Structured];
    const FORMS: [Form; 3] = [Form::Simple, Form::Structured, Form::Extended];
    const PAYLOAD_LEN: u16 = NBD_CMD_FLAG_PAYLOAD_LEN;

    /// What a session of the export `name` says to a request: the command, or the error and how much is
    /// drained.
    fn judge(
        session: &Negotiated,
        kind: u16,
        flags: u16,
        offset: u64,
        len: u64,
    ) -> Result<Command, (NbdErrno, u64)> {
        let header = request(session.form, kind, flags, ECHO.cookie, offset, len);
        outcome(session.transmission().admit(&header).unwrap(), kind, offset)
    }

    fn outcome(admission: Admission, kind: u16, offset: u64) -> Result<Command, (NbdErrno, u64)> {
        let expected = Echo { offset, ..ECHO };
        match admission {
            Admission::Accept(Request { echo, command }) if echo == expected => Ok(command),
            Admission::Refuse(Refusal { echo, command, error, drain })
                if echo == expected && command == kind =>
            {
                Err((error, drain))
            }
            other => panic!("{other:?}"),
        }
    }

    /// As a client of this form should ask: an extended WRITE has `PAYLOAD_LEN`.
    fn ask(form: Form, kind: u16, flags: u16, offset: u64, len: u64) -> Result<Command, (NbdErrno, u64)> {
        let payload = if form == Form::Extended && kind == NBD_CMD_WRITE { PAYLOAD_LEN } else { 0 };
        judge(&session("disk", form), kind, flags | payload, offset, len)
    }

    /// How much of a refused request is drained.
    fn drained(kind: u16, len: u64) -> u64 {
        if kind == NBD_CMD_WRITE { len } else { 0 }
    }

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

    /// The other form's magic, too: compact and extended requests do not mix.
    #[test]
    fn another_magic_ends_the_session() {
        for form in FORMS {
            let good = request(form, NBD_CMD_READ, 0, 0, 0, 512);
            let transmission = session("disk", form).transmission();
            let others =
                [0, 0x1256_0953, NBD_SIMPLE_REPLY_MAGIC, NBD_REQUEST_MAGIC, NBD_EXTENDED_REQUEST_MAGIC];
            let others = others.into_iter().filter(|magic| magic.to_be_bytes() != good[..4]);
            for magic in others {
                let mut header = good.clone();
                header[..4].copy_from_slice(&magic.to_be_bytes());
                let close = Admission::Close(CloseReason::BadRequestMagic(magic));
                assert_eq!(transmission.admit(&header), Some(close));
            }
        }
    }

    #[test]
    fn a_header_is_waited_for_and_what_follows_it_is_not_looked_at() {
        for form in FORMS {
            let transmission = session("disk", form).transmission();
            let mut bytes = request(form, NBD_CMD_READ, 0, 0, 0, 512);
            assert_eq!(bytes.len(), transmission.header_len());
            for len in 0..bytes.len() {
                assert_eq!(transmission.admit(&bytes[..len]), None);
            }
            let alone = transmission.admit(&bytes);
            bytes.push(7);
            assert_eq!((transmission.admit(&bytes), alone.is_some()), (alone, true));
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
    fn beyond_the_end_is_einval_or_enospc() {
        for form in FORMS {
            for (kind, error) in [
                (NBD_CMD_READ, NbdErrno::Einval),
                (NBD_CMD_WRITE, NbdErrno::Enospc),
                (NBD_CMD_TRIM, NbdErrno::Einval),
                (NBD_CMD_CACHE, NbdErrno::Einval),
                (NBD_CMD_WRITE_ZEROES, NbdErrno::Enospc),
                (NBD_CMD_BLOCK_STATUS, NbdErrno::Einval),
            ] {
                let needs_chunks = kind == NBD_CMD_BLOCK_STATUS && form == Form::Simple;
                assert!(needs_chunks || ask(form, kind, 0, SIZE - 1, 1).is_ok());
                for (offset, len) in
                    [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX - 511, 512), (0, SIZE + 1)]
                {
                    let answer = ask(form, kind, 0, offset, len);
                    assert_eq!(answer, Err((error, drained(kind, len))), "command {kind} at {offset}");
                }
            }
        }
    }

    /// CVE-2005-3534, CVE-2011-0530: a length of 2^32 - 1, on an export that is large enough for it.
    #[test]
    fn overlong_payloads_are_refused_and_the_rest_is_not() {
        let most = u64::from(MAX_PAYLOAD);
        for form in COMPACT {
            let large = session("", form);
            let overflow = if form.has_chunks() { NbdErrno::Eoverflow } else { NbdErrno::Einval };
            for len in [most + 1, u32::MAX.into()] {
                let ask = |kind| judge(&large, kind, 0, 0, len);
                assert_eq!(ask(NBD_CMD_READ), Err((overflow, 0)));
                assert_eq!(ask(NBD_CMD_WRITE), Err((NbdErrno::Einval, len)));
                assert!(
                    [NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES].map(ask).iter().all(Result::is_ok)
                );
                assert_eq!(ask(NBD_CMD_BLOCK_STATUS).is_ok(), form.has_chunks());
            }
            assert!(judge(&large, NBD_CMD_READ, 0, 0, most).is_ok());
            assert!(judge(&large, NBD_CMD_WRITE, 0, 0, most).is_ok());
        }
    }

    /// CVE-2025-47712: lengths around and beyond 32 bits arrive whole, and none wraps.
    #[test]
    fn extended_lengths_have_64_bits() {
        let large = session("", Form::Extended);
        let size = large.export.size().0;
        for len in [u64::from(u32::MAX), 1 << 32, (1 << 32) + 1, size] {
            let len_of = |kind| match judge(&large, kind, 0, size - len, len) {
                Ok(
                    Command::Trim { len, .. }
                    | Command::Cache { len, .. }
                    | Command::WriteZeroes { len, .. }
                    | Command::BlockStatus { len, .. },
                ) => len.0,
                other => panic!("{other:?}"),
            };
            let kinds = [NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES, NBD_CMD_BLOCK_STATUS];
            assert_eq!(kinds.map(len_of), [len; 4]);
            assert_eq!(judge(&large, NBD_CMD_READ, 0, 0, len), Err((NbdErrno::Eoverflow, 0)));
        }
        for len in [size + 1, 1 << 63, u64::MAX, u64::MAX - 0xfff] {
            for offset in [0, 1, 4096] {
                let ask = |kind| judge(&large, kind, 0, offset, len);
                assert_eq!(ask(NBD_CMD_WRITE_ZEROES), Err((NbdErrno::Enospc, 0)));
                for kind in [NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_BLOCK_STATUS] {
                    assert_eq!(ask(kind), Err((NbdErrno::Einval, 0)), "command {kind}, {len} bytes");
                }
            }
        }
    }

    #[test]
    fn a_read_only_export_takes_no_writes() {
        for form in FORMS {
            let tape = session("tape", form);
            let payload = if form == Form::Extended { PAYLOAD_LEN } else { 0 };
            for (kind, flags) in [(NBD_CMD_WRITE, payload), (NBD_CMD_TRIM, 0), (NBD_CMD_WRITE_ZEROES, 0)] {
                assert_eq!(judge(&tape, kind, flags, 0, 512), Err((NbdErrno::Eperm, drained(kind, 512))));
            }
            for kind in [NBD_CMD_READ, NBD_CMD_FLUSH, NBD_CMD_CACHE] {
                assert!(judge(&tape, kind, 0, 0, 512).is_ok());
            }
        }
    }

    #[test]
    fn zero_length_is_admitted_but_for_block_status() {
        for form in FORMS {
            for kind in [NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES] {
                assert!(ask(form, kind, 0, 0, 0).is_ok() && ask(form, kind, 0, SIZE, 0).is_ok(), "{kind}");
            }
            assert_eq!(ask(form, NBD_CMD_BLOCK_STATUS, 0, 0, 0), Err((NbdErrno::Einval, 0)));
        }
    }

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
