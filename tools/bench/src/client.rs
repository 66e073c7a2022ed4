//! The smallest NBD client that can load a server: connects, negotiates simple replies, fills a disk.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use hostveil::error::{Error, ErrorKind, Result};
use hostveil::nbd::wire::{NBD_OPTS_MAGIC, NBD_REQUEST_MAGIC, NBD_SIMPLE_REPLY_MAGIC};

use crate::interrupt;

/// proto.md, Request types.
pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
/// proto.md, Transmission flags.
const SEND_FLUSH: u16 = 1 << 2;
/// proto.md, Option types and Option reply types.
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
/// No reply to an option is longer.
const LONGEST_INFO: u32 = 64 << 10;

/// How long a server may leave us waiting.
const PATIENCE: Duration = Duration::from_secs(60);
/// A disk is filled in pieces of this size.
const PIECE: usize = 1 << 20;
/// Every so many bytes of a filled disk begin with a stamp.
pub(crate) const STAMP_EVERY: usize = 4096;

/// A connection to a server's default export, in the transmission phase.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    /// Bytes of the export.
    pub(crate) size: u64,
    flags: u16,
}

impl Client {
    /// Connects. A server that does not listen yet is an error like any other.
    pub(crate) fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Self { stream, size: 0, flags: 0 };
        client.negotiate()?;
        Ok(client)
    }

    /// proto.md, Newstyle negotiation: fixed newstyle, then GO for the default export.
    fn negotiate(&mut self) -> io::Result<()> {
        if &self.take::<18>()?[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(odd("no NBD server"));
        }
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend(NBD_OPTS_MAGIC.to_be_bytes());
        hello.extend([OPT_GO, 6].map(u32::to_be_bytes).concat());
        hello.extend([0; 6]);
        self.stream.write_all(&hello)?;
        loop {
            let header = self.take::<20>()?;
            let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| header[at + i]));
            if word(16) > LONGEST_INFO {
                return Err(odd("a reply that is too long"));
            }
            let mut data = vec![0; usize::try_from(word(16)).unwrap_or(0)];
            self.stream.read_exact(&mut data)?;
            match (word(12), data.as_slice()) {
                (REP_ACK, _) => return Ok(()),
                (REP_INFO, [0, 0, info @ ..]) if info.len() >= 10 => {
                    self.size = u64::from_be_bytes(std::array::from_fn(|i| info[i]));
                    self.flags = u16::from_be_bytes([info[8], info[9]]);
                }
                (REP_INFO, _) => {}
                _ => return Err(odd("no default export")),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes noise to the first `len` bytes, with a stamp that says where each part of it lies.
    pub(crate) fn fill(&mut self, len: u64) -> Result<()> {
        let mut piece = noise(PIECE);
        starts_of_pieces(len).try_for_each(|at| self.fill_piece(&mut piece, at, len))
    }

    /// The piece of that which begins at `at`.
    fn fill_piece(&mut self, piece: &mut [u8], at: u64, len: u64) -> Result<()> {
        interrupt::check()?;
        let part = usize::try_from(len - at).unwrap_or(PIECE).min(PIECE);
        for (offset, block) in (at..).step_by(STAMP_EVERY).zip(piece.chunks_mut(STAMP_EVERY)) {
            put_stamp(block, offset);
        }
        let done = self.write(at, &piece[..part]);
        done.map_err(|e| Error::io(format!("cannot fill a disk at {at}"), e))
    }

    /// Makes durable what has been written, if the server knows of such a thing.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if self.flags & SEND_FLUSH == 0 {
            return Ok(());
        }
        let sent = self.stream.write_all(&request(FLUSH, 0, 0, 0));
        let done = sent.and_then(|()| reply(&mut &self.stream));
        done.map(drop).map_err(|e| Error::io("cannot flush a disk", e))
    }

    fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        self.stream.write_all(&request(WRITE, at, at, u32::try_from(data.len()).unwrap_or(u32::MAX)))?;
        self.stream.write_all(data)?;
        if reply(&mut &self.stream)? == at { Ok(()) } else { Err(odd("a reply to nothing")) }
    }
}

/// As [`Client::fill`], on each of several clients' disks, a piece at a time in turns. Memory that was in use
/// before lies scattered and is slower to copy from and to; it goes to whoever is first to write.
/// Gives what became of each.
pub(crate) fn fill_in_turns(clients: Vec<Client>, len: u64) -> Vec<Result<()>> {
    let mut piece = noise(PIECE);
    let mut results: Vec<_> = clients.iter().map(|_| Ok(())).collect();
    let mut clients = clients;
    for at in starts_of_pieces(len) {
        for (client, result) in clients.iter_mut().zip(&mut results).filter(|(_, result)| result.is_ok()) {
            *result = client.fill_piece(&mut piece, at, len);
        }
    }
    results
}

fn starts_of_pieces(len: u64) -> impl Iterator<Item = u64> {
    (0..len).step_by(PIECE)
}

impl Drop for Client {
    fn drop(&mut self) {
        // A server that is gone needs no farewell.
        let _ = self.stream.write_all(&request(DISC, 0, 0, 0));
    }
}

/// proto.md, Request message.
pub(crate) fn request(command: u16, cookie: u64, at: u64, len: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&NBD_REQUEST_MAGIC.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&at.to_be_bytes());
    bytes[24..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// proto.md, Simple reply message: the cookie of a request that succeeded.
pub(crate) fn reply(stream: &mut impl Read) -> io::Result<u64> {
    let mut header = [0; 16];
    stream.read_exact(&mut header)?;
    if header[..4] != NBD_SIMPLE_REPLY_MAGIC.to_be_bytes() {
        return Err(odd("no simple reply"));
    }
    match header[4..8] {
        [0, 0, 0, 0] => Ok(u64::from_be_bytes(std::array::from_fn(|i| header[8 + i]))),
        _ => Err(odd("an error in reply to a request")),
    }
}

/// Marks the beginning of a block with its place.
pub(crate) fn put_stamp(block: &mut [u8], at: u64) {
    if let Some(stamp) = block.first_chunk_mut() {
        *stamp = stamp_of(at);
    }
}

/// Whether a block begins with its place.
pub(crate) fn has_stamp(block: &[u8], at: u64) -> bool {
    block.first_chunk() == Some(&stamp_of(at))
}

/// Zero is no stamp of anything.
fn stamp_of(at: u64) -> [u8; 8] {
    (at ^ 0x5f48_4f53_5456_4549).to_le_bytes()
}

/// Bytes that do not repeat and cannot be compressed (xorshift64*).
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    });
    words.flatten().take(len).collect()
}

/// The error for a server that does not speak the protocol.
fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server sent {what}"))
}

/// The error for data that is not what was written.
pub(crate) fn wrong_data(at: u64) -> Error {
    Error::new(
        ErrorKind::TamperedBlock,
        format!("the disk gave something else at {at} than was written there"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_says_where_its_block_lies() {
        let mut block = noise(512);
        assert!(!has_stamp(&block, 7));
        put_stamp(&mut block, 7);
        assert!(has_stamp(&block, 7) && !has_stamp(&block, 8));
        assert!(!has_stamp(&[0; 512], 0) && !has_stamp(&[], 7));
    }

    #[test]
    fn replies_that_are_none_are_refused() {
        let good = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &9_u64.to_be_bytes()].concat();
        assert_eq!(reply(&mut good.as_slice()).unwrap(), 9);
        for (at, byte) in [(0, 0), (7, 5)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(reply(&mut bad.as_slice()).is_err());
        }
        assert!(reply(&mut &good[..15]).is_err());
    }
}
