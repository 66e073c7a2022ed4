//! Carrying one request out on a disk and making its reply.

use crate::block::{BufferPool, Disk, Durability, Zeroing};
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::{Command, Header, NbdErrno, Replies, Request, errno};
use crate::units::{ByteCount, ByteOffset};

use super::outbox::Payload;

/// Extents in one BLOCK_STATUS reply; the client asks again for the rest. The protocol's limit for
/// compatible clients is 2^20.
const MAX_EXTENTS: usize = 4096;

/// Carries `request` out. The reply says how that went; a failure is logged here.
pub(super) fn execute(
    disk: &Disk,
    pool: &BufferPool,
    replies: Replies,
    request: &Request,
    data: Option<crate::block::Buffer>,
) -> (Header, Payload) {
    let cookie = request.cookie;
    let done = |result: Result<()>| result.map(|()| (replies.done(cookie), Payload::Nothing));
    let result = match request.command {
        Command::Read { offset, len, .. } => read(disk, pool, replies, cookie, offset, len),
        Command::Write { offset, fua, .. } => done(match data {
            Some(data) => disk.write(offset, data, durability(fua)),
            None => Err(Error::new(ErrorKind::InvalidInput, "a write without its data")),
        }),
        Command::Flush => done(disk.flush()),
        Command::Trim { offset, len, fua } => done(disk.discard(offset, len, durability(fua))),
        Command::WriteZeroes { offset, len, fua, no_hole, fast } => {
            let how = Zeroing { may_unmap: !no_hole, only_if_fast: fast };
            done(disk.write_zeroes(offset, len, how, durability(fua)))
        }
        Command::Cache { offset, len } => done(disk.prefetch(offset, len)),
        Command::BlockStatus { offset, len, req_one } => {
            let limit = if req_one { 1 } else { MAX_EXTENTS };
            disk.extents(offset, len, limit)
                .map(|extents| replies.block_status(cookie, len, req_one, &extents))
                .map(|(header, body)| (header, Payload::Bytes(body)))
        }
        Command::Disc => done(Ok(())),
    };
    result.unwrap_or_else(|error| (failed(replies, request, &error), Payload::Nothing))
}

fn read(
    disk: &Disk,
    pool: &BufferPool,
    replies: Replies,
    cookie: u64,
    offset: ByteOffset,
    len: ByteCount,
) -> Result<(Header, Payload)> {
    let too_long = || Error::new(ErrorKind::InvalidInput, "a read longer than memory");
    let mut buffer = pool.take(len.to_usize().ok_or_else(too_long)?)?;
    // The whole range is read, and on sealed volumes verified, before its first byte leaves.
    disk.read(offset, &mut buffer)?;
    Ok((replies.data(cookie, offset, len), Payload::Data(buffer)))
}

fn durability(fua: bool) -> Durability {
    if fua { Durability::Fua } else { Durability::Flush }
}

/// Logs a failed request and makes the reply that tells the client.
fn failed(replies: Replies, request: &Request, error: &Error) -> Header {
    let number: NbdErrno = errno(error.kind(), &request.command);
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::warn!(request = request.command.name(), %error, cause, answer = number.name(), "a request failed");
    replies.error(request.cookie, number)
}
