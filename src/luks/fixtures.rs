//! What the tests of this room share: small volumes, and headers changed as a hostile host would.

use std::sync::LazyLock;

use serde_json::Value;

use super::binary_header::{BinaryHeader, Place};
use super::format::{FormatOptions, Pbkdf, format};
use super::metadata::Metadata;
use super::read::RawHeader;
use crate::backing::{Backing, MemoryBacking};
use crate::crypto::{Hash, KdfAlgorithm};
use crate::env::{OsEntropy, Silent};
use crate::secret::{Passphrase, SecretBytes};
use crate::units::{BlockSize, ByteCount, ByteOffset};

pub(super) const UUID: &str = "0e2c6d5c-3f0e-4b5a-9d1c-2f6a8c1b7e44";
pub(super) const CHEAP: KdfAlgorithm = KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 };
pub(super) const MIB: u64 = ByteCount::MIB;

pub(super) fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(SecretBytes::copy_of(text.as_bytes()).unwrap())
}

pub(super) fn options(sector_size: BlockSize) -> FormatOptions {
    FormatOptions {
        data_size: ByteCount(MIB),
        sector_size,
        label: "a disk".to_owned(),
        pbkdf: Pbkdf::Exactly(CHEAP),
    }
}

/// A new store of 17 MiB with a new volume of 1 MiB that opens with "secret".
pub(super) fn fresh_volume(sector_size: BlockSize) -> MemoryBacking {
    let backing = MemoryBacking::new(ByteCount(17 * MIB));
    format(&backing, &options(sector_size), &passphrase("secret"), &OsEntropy, &Silent).unwrap();
    backing
}

/// Such a store, faster: a copy of one that is made once.
pub(super) fn volume(sector_size: BlockSize) -> MemoryBacking {
    static B512: LazyLock<MemoryBacking> = LazyLock::new(|| fresh_volume(BlockSize::B512));
    static B4096: LazyLock<MemoryBacking> = LazyLock::new(|| fresh_volume(BlockSize::B4096));
    let original = if sector_size == BlockSize::B512 { &B512 } else { &B4096 };
    copy_of(original, ByteCount(17 * MIB))
}

/// A store of `size` bytes with a copy of what lies before the data in another, as far as it is used.
pub(super) fn copy_of(original: &MemoryBacking, size: ByteCount) -> MemoryBacking {
    let mut start = vec![0; 290_816];
    original.read_at(ByteOffset(0), &mut start).unwrap();
    let copy = MemoryBacking::new(size);
    copy.write_at(ByteOffset(0), &start).unwrap();
    copy
}

/// The metadata of such a volume.
pub(super) fn metadata() -> Metadata {
    RawHeader::read(&volume(BlockSize::B4096)).unwrap().metadata
}

/// A header whose JSON was changed and whose checksum is right all the same, as a host can make it.
pub(super) fn forged(change: impl FnOnce(&mut Value)) -> RawHeader {
    let backing = volume(BlockSize::B4096);
    forge(&backing, change);
    RawHeader::read(&backing).unwrap()
}

/// Changes the JSON of both copies of the header in a store.
pub(super) fn forge(backing: &dyn Backing, change: impl FnOnce(&mut Value)) {
    let header = RawHeader::read(backing).unwrap();
    let mut json = serde_json::to_value(&header.metadata).unwrap();
    change(&mut json);
    let binary = BinaryHeader { seqid: header.binary.seqid + 1, ..header.binary };
    for (place, at) in [(Place::Primary, 0), (Place::Secondary, binary.hdr_size)] {
        let copy = binary.assemble(place, &[1; 64], &serde_json::to_vec(&json).unwrap()).unwrap();
        backing.write_at(ByteOffset(at), &copy).unwrap();
    }
}
