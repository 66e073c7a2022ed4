//! What a header and a superblock say, for people and programs that look at them without a key.

use serde::Serialize;

use crate::backing::Backing;
use crate::crypto::KdfAlgorithm;
use crate::sealed::layout::{BLOCK, offset_of};
use crate::sealed::superblock::fields::{SLOTS, Superblock};

use super::fields::{CopyPlace, Header};
use super::slot::Protection;
use super::unlock::CheckedHeader;

/// A sealed volume's header in plain terms. Without the key nobody can say that it is authentic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeaderDescription {
    /// The volume's identity.
    pub uuid: String,
    /// The cipher suite.
    pub suite: String,
    /// Grows with every change of the header.
    pub sequence: u64,
    /// Grows with every change of the volume key.
    pub key_generation: u32,
    /// How an anchor guards it: `none`, `strict` or `lazy`.
    pub anchor_mode: String,
    /// The key slots that are in use.
    pub keyslots: Vec<SlotDescription>,
    /// What became of copy A: `whole`, or why it cannot be read.
    pub copy_a: String,
    /// What became of copy B: `the same`, `different`, or why it cannot be read.
    pub copy_b: String,
}

/// A key slot in plain terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotDescription {
    /// Its number.
    pub number: u32,
    /// How a secret becomes its key, with costs.
    pub kdf: String,
}

/// The superblock of the highest generation in plain terms. Without the key nobody can say that it is
/// authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SuperblockDescription {
    /// Its number, which grows with every mount and checkpoint.
    pub generation: u64,
    /// How often the volume was mounted for writing.
    pub epoch: u32,
    /// How often it can be.
    pub epochs: u32,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Size of the store that it needs in bytes; none for parameters that cannot be.
    pub store_size: Option<u64>,
    /// Room for journal blocks, in bytes.
    pub journal_size: u64,
}

/// Describes the superblock in a store; none if there is nothing that looks like one.
pub fn describe_superblock(backing: &dyn Backing) -> Option<SuperblockDescription> {
    let read = |slot: u64| {
        let mut bytes = Box::new([0; BLOCK]);
        backing.read_at(offset_of(slot), bytes.as_mut_slice()).ok()?;
        Superblock::claims(&bytes)
    };
    let newest = SLOTS.into_iter().filter_map(read).max_by_key(|(generation, ..)| *generation);
    let bytes_of = |blocks: u64| blocks.saturating_mul(BLOCK as u64);
    newest.map(|(generation, epoch, parameters)| SuperblockDescription {
        generation,
        epoch,
        epochs: parameters.epochs,
        size: bytes_of(parameters.logical_blocks),
        store_size: parameters.store_size().ok().map(|size| size.0),
        journal_size: bytes_of(parameters.journal_blocks.into()),
    })
}

impl CheckedHeader {
    /// What the first copy says.
    pub fn describe(&self) -> HeaderDescription {
        let header = self.first();
        let (copy_a, copy_b) = self.copy_states();
        HeaderDescription {
            uuid: header.volume.uuid.to_string(),
            suite: header.volume.suite.to_string(),
            sequence: header.sequence,
            key_generation: header.key_generation,
            anchor_mode: header.anchor.to_string(),
            keyslots: describe_slots(header),
            copy_a,
            copy_b,
        }
    }

    /// The key slots that are in use, as the first copy says.
    pub fn slots(&self) -> Vec<SlotDescription> {
        describe_slots(self.first())
    }

    fn copy_states(&self) -> (String, String) {
        let whole = "whole".to_owned();
        match (&self.copies[..], &self.damaged) {
            ([a, b, ..], _) if a.bytes == b.bytes => (whole, "the same".to_owned()),
            ([_, _, ..], _) => (whole, "different".to_owned()),
            (_, Some((CopyPlace::A, why))) => (why.to_string(), whole),
            (_, Some((CopyPlace::B, why))) => (whole, why.to_string()),
            (_, None) => (whole, "another volume's".to_owned()),
        }
    }
}

fn describe_slots(header: &Header) -> Vec<SlotDescription> {
    let describe = |number: u8, protection: &Protection| {
        let kdf = match protection {
            Protection::Passphrase(kdf) => match kdf.algorithm {
                KdfAlgorithm::Argon2id { time, memory_kib, lanes } => {
                    format!("argon2id, {time} passes over {memory_kib} KiB in {lanes} lanes")
                }
                other => other.name().to_owned(),
            },
            Protection::Key => "none, opens with a key of 32 bytes".to_owned(),
        };
        SlotDescription { number: number.into(), kdf }
    };
    header.used_slots().map(|(number, slot)| describe(number, &slot.protection)).collect()
}

#[cfg(test)]
mod tests {
    use crate::sealed::header::fixtures::{limits, volume};
    use crate::sealed::{HEADER_LEN, RawHeader};

    #[test]
    fn a_header_is_described_without_a_key() {
        let store = volume(&["one", "two"]);
        let [a, mut b] = store.copies();
        let describe = |a: &[u8; HEADER_LEN], b: &[u8; HEADER_LEN]| {
            RawHeader::from_copies(a, b).check(&limits()).unwrap().describe()
        };
        let same = describe(&a, &b);
        assert_eq!((same.copy_a.as_str(), same.copy_b.as_str()), ("whole", "the same"));
        assert_eq!(
            (same.suite.as_str(), same.anchor_mode.as_str(), same.sequence),
            ("aes-256-gcm", "none", 2)
        );
        assert_eq!(same.uuid, store.id.uuid.to_string());
        assert_eq!(same.keyslots.len(), 2);
        assert_eq!(same.keyslots[1].kdf, "argon2id, 1 passes over 8 KiB in 1 lanes");
        b[HEADER_LEN - 1] ^= 1;
        assert_eq!(describe(&a, &b).copy_b, "different");
        b[12] = 9;
        assert!(describe(&a, &b).copy_b.contains("suite is 9"));
        assert!(describe(&b, &a).copy_a.contains("suite is 9"));
        assert_eq!(describe(&b, &a).copy_b, "whole");
    }
}
