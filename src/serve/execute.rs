//! Carrying one request out on a disk and making its reply.

use crate::block::{Buffer, BufferPool, Disk};
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::{Command, Echo, Negotiated, Replies, Request};
use crate::units::{ByteCount, ByteOffset};

use super::outbox::Answer;

/// Extents in one BLOCK_STATUS reply; a client asks again for the rest.
pub(super) const MAX_EXTENTS: usize = 4096;

/// Carries `request` out and makes its answer.
pub(super) fn execute(
    disk: &Disk,
    pool: &BufferPool,
    session: &Negotiated,
    request: &Request,
    data: Option<Buffer>,
) -> Result<Answer> {
    let echo = request.echo;
    let done = |result: Result<()>| result.map(|()| Answer::Bare(session.replies().done(echo)));
    match request.command {
        Command::Read { offset, len, .. } => read(disk, pool, session, echo, offset, len),
        Command::Write { offset, durability, .. } => done(match data {
            Some(data) => disk.write(offset, data, durability),
            None => Err(Error::new(ErrorKind::InvalidInput, "a write without its data")),
        }),
        Command::Flush => done(disk.flush()),
        Command::Trim { offset, len, durability } => done(disk.discard(offset, len, durability)),
        Command::WriteZeroes { offset, len, how, durability } => {
            done(disk.write_zeroes(offset, len, how, durability))
        }
        Command::Cache { offset, len } => done(disk.prefetch(offset, len)),
        Command::BlockStatus { offset, len, req_one } => {
            block_status(disk, session, echo, offset, len, req_one)
        }
        Command::Disc => done(Ok(())),
    }
}

fn read(
    disk: &Disk,
    pool: &BufferPool,
    session: &Negotiated,
    echo: Echo,
    offset: ByteOffset,
    len: ByteCount,
) -> Result<Answer> {
    let too_long = || Error::new(ErrorKind::InvalidInput, "a read of 4 GiB or more");
    let count = u32::try_from(len.0).map_err(|_| too_long())?;
    let mut buffer = pool.take(len.to_usize().ok_or_else(too_long)?)?;
    // The whole range is read, and on sealed volumes verified, before its first byte leaves.
    disk.read(offset, &mut buffer)?;
    Ok(Answer::Data(session.replies().read_header(echo, offset, count), buffer))
}

fn block_status(
    disk: &Disk,
    session: &Negotiated,
    echo: Echo,
    offset: ByteOffset,
    len: ByteCount,
    req_one: bool,
) -> Result<Answer> {
    let (Replies::InChunks(chunks), Some(context)) = (session.replies(), session.meta_allocation) else {
        return Err(Error::new(ErrorKind::InvalidInput, "a block status that was not negotiated"));
    };
    let extents = disk.extents(offset, len, if req_one { 1 } else { MAX_EXTENTS })?;
    let mut reply = Vec::new();
    chunks.block_status(echo, context, len, req_one, &extents, &mut reply);
    Ok(Answer::Whole(reply))
}
