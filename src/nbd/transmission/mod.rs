//! [`Transmission`]: judges the header of every request before anything else happens to it.
//!
//! Guarantees: what is admitted lies within the export, may be written if it writes, has only flags that
//! fit, and carries at most 32 MiB in either direction. Of what is refused the caller learns how many
//! bytes of payload follow, all of which must be thrown away: a payload that looks like a request must
//! never be taken for one. Nothing here allocates.

mod filter;
mod header;
#[cfg(test)]
mod testing;

use crate::units::ByteCount;

use super::command::{Command, Echo, Form, Request};
use super::errno::{NbdErrno, out_of_range};
use super::outcome::{CloseReason, Negotiated};
use super::wire::{
    EXTENDED_REQUEST_HEADER_LEN, MAX_PAYLOAD, NBD_EXTENDED_REQUEST_MAGIC, NBD_REQUEST_MAGIC,
    REQUEST_HEADER_LEN,
};
pub use filter::Filtered;
use header::RequestHeader;

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
        let header = RequestHeader::parse(self.form, input)?;
        let extended = self.form == Form::Extended;
        let magic = if extended { NBD_EXTENDED_REQUEST_MAGIC } else { NBD_REQUEST_MAGIC };
        Some(if header.magic != magic {
            Admission::Close(CloseReason::BadRequestMagic(header.magic))
        } else if extended && header.payload_len(self.form) > MAX_PAYLOAD.into() {
            // proto.md, Request message, the extended form: nobody waits for the end of this one. Without
            // extended headers a payload ends within 4 GiB.
            Admission::Close(CloseReason::PayloadTooLong(header.len))
        } else if Filtered::applies(self, &header) {
            Admission::Filter(Filtered::new(header, *self))
        } else {
            match self.judge(&header, header.payload_len(self.form)) {
                Ok(request) => Admission::Accept(request),
                Err(refusal) => Admission::Refuse(refusal),
            }
        })
    }

    /// Judges a request after which `drain` bytes of payload follow.
    fn judge(&self, header: &RequestHeader, drain: u64) -> Result<Request, Refusal> {
        let echo = Echo { cookie: header.cookie, offset: header.offset.0 };
        match self.check(header) {
            Ok(command) => Ok(Request { echo, command }),
            Err(error) => Err(Refusal { echo, command: header.kind, error, drain }),
        }
    }

    fn check(&self, header: &RequestHeader) -> Result<Command, NbdErrno> {
        let command = header.command(self.form, self.context.is_some())?;
        self.check_writable(&command)?;
        self.check_range(header, &command)?;
        self.check_payload(header, &command)?;
        Ok(command)
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
    fn check_range(&self, header: &RequestHeader, command: &Command) -> Result<(), NbdErrno> {
        if matches!(command, Command::Disc | Command::Flush) {
            return Ok(());
        }
        match header.offset.checked_add(ByteCount(header.len)) {
            Some(end) if end.0 <= self.size.0 => Ok(()),
            _ => Err(out_of_range(command)),
        }
    }

    /// proto.md, Size constraints: the maximum payload. proto.md, Error values: EOVERFLOW is for a READ
    /// that is answered in chunks and for what has no payload, none of which is ever too long here.
    fn check_payload(&self, header: &RequestHeader, command: &Command) -> Result<(), NbdErrno> {
        let too_long = header.len > MAX_PAYLOAD.into();
        match command {
            Command::Read { .. } if too_long && self.form.has_chunks() => Err(NbdErrno::Eoverflow),
            Command::Read { .. } | Command::Write { .. } if too_long => Err(NbdErrno::Einval),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::testing::{request, session};
    use crate::nbd::transmission::testing::{COMPACT, FORMS, PAYLOAD_LEN, SIZE, ask, drained, judge};
    use crate::nbd::wire::*;

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
}
