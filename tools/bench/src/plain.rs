//! `hostveil-bench plain SOCKET FILE`: hostveil's own server on a file that is not encrypted, so that
//! what encryption costs can be told from what serving costs. Hidden: it is no way to run a VM.

use std::path::PathBuf;

use hostveil::backing::{Access, Backing, FileBacking};
use hostveil::block::{
    BlockDevice, Buffer, BufferPool, Capabilities, Discard, Disk, Durability, Extent, Geometry, Range,
    Zeroing,
};
use hostveil::error::Result;
use hostveil::nbd::Export;
use hostveil::net::{Address, Listener};
use hostveil::serve::{self, Front, Offer, Options, Server, Service};
use hostveil::units::{BlockSize, ByteCount};
use rustix::event::{PollFd, PollFlags, poll};

use crate::interrupt;

/// Zeroes are written in pieces of this size.
const PIECE: u64 = 1 << 20;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    socket: PathBuf,
    disk: PathBuf,
}

/// Serves until a signal comes.
pub(crate) fn serve(args: &Args) -> Result<()> {
    let options = Options::default();
    let pool = options.limits.pool();
    let backing = FileBacking::open(&args.disk, Access::ReadWrite)?;
    let size = backing.len()?;
    let disk = Disk::new(Plain { backing, size, pool: pool.clone() });
    let export = Export::new("", "not encrypted", disk.geometry(), disk.capabilities())?;
    let service = Service { export, disk, access: serve::Access::default() };
    let listener = Listener::bind(&Address::Unix(args.socket.clone()), None)?;
    let server = Server::new(vec![service], pool, options)?;
    let stopper = server.stopper();
    std::thread::spawn(move || {
        if let Some(signal) = interrupt::descriptor() {
            while interrupt::check().is_ok() {
                // A wait that is interrupted is begun again.
                let _ = poll(&mut [PollFd::new(&signal, PollFlags::IN)], None);
            }
            stopper.stop();
        }
    });
    server.run(vec![Front { listener, offer: Offer::all() }])
}

/// A file as it is.
struct Plain {
    backing: FileBacking,
    size: ByteCount,
    pool: BufferPool,
}

impl BlockDevice for Plain {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.size, block: BlockSize::BYTE, preferred: BlockSize::B4096 }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: false, discard: Discard::Ignored, fast_zeroes: false }
    }

    fn read(&self, at: Range, into: &mut [u8]) -> Result<()> {
        self.backing.read_at(at.offset(), into)
    }

    fn write(&self, at: Range, data: Buffer, durability: Durability) -> Result<()> {
        match durability {
            Durability::Flush => self.backing.write_at(at.offset(), &data),
            Durability::Fua => self.backing.write_durably_at(at.offset(), &data),
        }
    }

    fn flush(&self) -> Result<()> {
        self.backing.sync()
    }

    fn discard(&self, _: Range, _: Durability) -> Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, at: Range, _: Zeroing, durability: Durability) -> Result<()> {
        for piece in at.pieces_of(PIECE) {
            let mut zeroes = self.pool.take(piece.len().to_usize().unwrap_or(0))?;
            zeroes.fill(0);
            self.write(piece, zeroes, durability)?;
        }
        Ok(())
    }

    fn extents(&self, at: Range, _: usize) -> Result<Vec<Extent>> {
        Ok(vec![Extent { len: at.len(), allocated: true, reads_zero: false }])
    }
}
